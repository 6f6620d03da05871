"""The action and the recipes of docs/ci.md do what they say, run as a CI would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
INPUTS = {name: entry.get("default", "") for name, entry in ACTION["inputs"].items()}
DOC = (ROOT / "docs/ci.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tmp_path, assets, monkeypatch) -> Path:
    """A checked-out repository with a model, and a ``dacconv`` on the path."""
    (tmp_path / "repo/nets").mkdir(parents=True)
    (tmp_path / "repo/nets/fashion.onnx").write_bytes((assets / "fashion.onnx").read_bytes())
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/dacconv"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dacconv "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path / "repo")
    return tmp_path


def step(place: Path, name: str, **inputs: str) -> tuple[int, dict[str, str]]:
    """Run a step as the runner does; its exit code, and the files that it may write to."""
    values = INPUTS | {key.replace("_", "-"): value for key, value in inputs.items()}
    given = {
        key: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: values[m[1]], value)
        for key, value in STEPS[name]["env"].items()
    }
    files = {key: place / key for key in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT", "GITHUB_PATH")}
    for path in files.values():
        path.touch()
    runner = {"RUNNER_TEMP": str(place), "GITHUB_ACTION_PATH": str(ROOT), "CI": "true"}
    script = place / "script.sh"
    script.write_text(STEPS[name]["run"])
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", script],
        env=os.environ | runner | given | {key: str(path) for key, path in files.items()},
        check=False,
        capture_output=True,
    )
    return done.returncode, {key: path.read_text() for key, path in files.items()}


def test_what_a_caller_gives_reaches_the_shell_in_variables_only() -> None:
    for entry in STEPS.values():
        assert "${{" not in entry.get("run", "")
    used = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text()))
    assert used == set(ACTION["inputs"])
    assert {"model", "args", "max-error", "min-saving", "output"} <= used


def test_the_action_converts_and_tells(place) -> None:
    args = "--rank 4 --last-k '3' --samples 2"
    code, files = step(place, "Convert", model="nets/fashion.onnx\n", args=args, min_saving="20%")
    assert code == 0
    assert files["GITHUB_OUTPUT"] == "folder=dacconv-out\n"
    assert files["GITHUB_STEP_SUMMARY"].startswith("# dacconv: fashion.onnx")
    made = sorted(path.name for path in Path("dacconv-out").iterdir())
    assert made == ["fashion.dac.onnx", "report.html", "report.md"]


def test_a_missed_gate_fails_the_action_with_a_report(place) -> None:
    (place / "repo/nets/b.onnx").write_bytes((place / "repo/nets/fashion.onnx").read_bytes())
    inputs = {"args": "--rank 1 --last-k 1 --samples 2", "max_error": "0.0001", "output": "x y"}
    code, files = step(place, "Convert", model="nets/*.onnx", **inputs)
    assert code == 1
    summary = files["GITHUB_STEP_SUMMARY"]
    assert summary.count("> **Gate missed:** relative error") == 2
    assert "gate missed: nets/b.onnx" in summary
    made = sorted(path.name for path in Path("x y").iterdir())
    assert made == [
        f"{name}.dac.onnx.{kind}" for name in ("b", "fashion") for kind in ("html", "md")
    ]
    upload = STEPS["Upload the models and reports"]
    assert upload["if"].startswith("${{ !cancelled() &&")  # so it runs after a failed step, too
    assert "steps.convert.outputs.folder" in upload["with"]["path"]


def test_nothing_that_a_caller_gives_is_run(place) -> None:
    evil = "$(touch pwned)`touch pwned`; touch pwned"
    inputs = {"args": evil, "max_error": evil, "output": "out"}
    code, files = step(place, "Convert", model=f"{evil}.onnx", **inputs)
    assert code == 2
    assert not Path("pwned").exists()
    assert "'--max-error'" in files["GITHUB_STEP_SUMMARY"]  # click's word on what is no number


def test_the_install_step(place) -> None:
    """Against a python that writes down what it is asked for: the real one takes gigabytes."""
    fake = place / "bin/python3"
    fake.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@" >> "$RUNNER_TEMP/asked"\n'
        'if [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi\n'
    )
    fake.chmod(0o755)
    code, files = step(place, "Install dacconv")
    assert code == 0
    asked = (place / "asked").read_text().split("\n")
    assert asked[:3] == ["-m", "venv", str(place / "dacconv")]
    assert asked[3:6] == ["-m", "pip", "install"]
    assert asked[-2] == str(ROOT)
    assert (ROOT / "constraints.txt").is_file()
    help_text = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--help"], capture_output=True, text=True
    ).stdout
    for option in (word for word in asked if word.startswith("--")):
        assert option in help_text
    assert files["GITHUB_PATH"] == f"{place}/dacconv/bin\n"


def test_the_hook_calls_a_command_that_there_is() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["entry"] == "dacconv check --reproduce"
    documented = next(b for b in map(yaml.safe_load, blocks("yaml")) if "repos" in b)
    assert documented["repos"][0]["hooks"][0]["id"] == hook["id"]


def test_the_documented_workflow_uses_inputs_that_there_are() -> None:
    workflow = next(b for b in map(yaml.safe_load, blocks("yaml")) if b.get("name") == "release")
    given = workflow["jobs"]["convert"]["steps"][1]["with"]
    assert set(given) <= set(ACTION["inputs"])


def test_the_documented_release_and_checks_run(place) -> None:
    (toml,) = blocks("toml")
    Path("dacconv.toml").write_text(toml)
    subprocess.run(["dacconv", "run"], check=True, capture_output=True)
    made = {path.name for path in Path("dist").iterdir()}
    assert {"fashion-small.onnx", "fashion-good.onnx", "SHA256SUMS"} <= made


def test_the_documented_makefile_and_job_run(place) -> None:
    (make,) = blocks("make")
    Path("Makefile").write_text(make)
    subprocess.run(["make", "models"], check=True, capture_output=True)
    assert subprocess.run(["make", "-q", "models"], check=False).returncode == 0  # up to date
    job = next(b["convert"] for b in map(yaml.safe_load, blocks("yaml")) if "convert" in b)
    for line in job["script"]:
        if not line.startswith("pip "):
            subprocess.run(["bash", "-ec", line], check=True, capture_output=True)
    assert Path("dist/report.html").is_file()
    (check,) = re.findall(r"^    (dacconv check .*)$", DOC, re.MULTILINE)
    subprocess.run(["bash", "-ec", check], check=True, capture_output=True)


def hostile(place: Path, **inputs: str) -> tuple[list[str], subprocess.CompletedProcess[str], str]:
    """What the Convert step calls dacconv with, what it prints, and the outputs that it sets."""
    program = place / "bin/dacconv"
    program.write_text(
        '#!/bin/bash\nprintf "%s\\0" "$@" > "$RUNNER_TEMP/asked"\n'
        'echo "::error::forged"; echo "::set-output name=x::y" >&2; echo \'```\' >&2; exit 3\n'
    )
    values = {key.upper(): value for key, value in inputs.items()}
    script = place / "script.sh"
    script.write_text(STEPS["Convert"]["run"])
    files = {key: str(place / key) for key in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")}
    defaults = {"ARGS": "", "MAX_ERROR": "", "MIN_SAVING": "", "OUTPUT": "out"}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", script],
        env=os.environ | {"RUNNER_TEMP": str(place)} | defaults | files | values,
        check=False,
        capture_output=True,
        text=True,
    )
    asked = (place / "asked").read_text().split("\0")[:-1]
    return asked, done, (place / "GITHUB_OUTPUT").read_text()


@pytest.mark.parametrize("output", ["out", "-out", "--trust-pickle", "a b", "/tmp/x", "..", "a;b"])
def test_what_begins_with_a_dash_is_a_file(place, output: str) -> None:
    for name in ("-x.onnx", "--arch=a:b", "a b.onnx"):
        (place / "repo" / name).touch()
    (place / "repo/-nets").mkdir()
    (place / "repo/-nets/-y.onnx").touch()
    lines = "*.onnx\n--arch=a:b\n-nets/*\n--trust-pickle\n/abs/m.onnx\n"
    output = str(place / "x") if output == "/tmp/x" else output
    asked, _, folder = hostile(place, model=lines, output=output)
    split = asked.index("--")
    assert asked[split + 1 :] == [
        "./-x.onnx", "./a b.onnx", "./--arch=a:b", "./-nets/-y.onnx", "./--trust-pickle",
        "/abs/m.onnx",
    ]  # fmt: skip
    options = [word.partition("=")[0] for word in asked[:split]]
    assert options == ["convert", "--output-dir", "--force", "--html", "--markdown"]
    assert folder == f"folder={output}\n"


def test_no_output_forges_a_command_of_the_runner(place) -> None:
    _, done, folder = hostile(place, model="m.onnx", output="dist\nevil=1\n::error::x")
    assert done.returncode == 3
    assert folder == "folder=dist\n"
    lines = done.stdout.splitlines()
    token = lines[0].removeprefix("::stop-commands::")
    assert re.fullmatch(r"dacconv-\d{4,}", token)
    assert lines[-1] == f"::{token}::"
    assert "::error::forged" in lines[1:-1]
    summary = (place / "GITHUB_STEP_SUMMARY").read_text()
    assert "    ```\n" in summary  # part of the log, and no end of it
    assert not re.search("^```", summary, re.MULTILINE)
