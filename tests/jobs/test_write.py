"""What is verified is the file that was written, and it has its name only when it is right."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch

from dacconv.conversion.pipeline import Conversion
from dacconv.support.files import publish, staging
from tests import cli_nets
from tests.cli.test_app import ARCH
from tests.conftest import ROOT

WEIGHT = cli_nets.trained().state_dict()["point.weight"].numpy()
"""The weights of a layer that is not split."""
FILES = {
    "net.onnx": (),
    "large.onnx": (),
    "net.pth": ARCH,
    "net.safetensors": ARCH,
    "weights.pth": (),
    "net.pt2": (),
    "module.pt": ("--trust-pickle", "--input-shape", "1,3,12,12"),
}
"""A file of each format, and the options that it is opened with."""
DATA = r"large\.dac\.onnx\.[0-9a-f]{16}\.data"


@pytest.fixture
def zoo(work) -> Path:
    """The small network in every format that can be written."""
    proto = cli_nets.onnx_model()
    onnx.save(
        proto, work / "large.onnx", save_as_external_data=True, location="large.data",
        size_threshold=1024,
    )  # fmt: skip
    (work / "weights.pth").write_bytes((work / "net.pth").read_bytes())
    torch.save(cli_nets.trained(), work / "module.pt")
    program = torch.export.export(cli_nets.trained(), (torch.zeros(2, 3, 12, 12),))
    torch.export.save(program, work / "net.pt2")
    return work


def converted(name: str) -> str:
    return f"{Path(name).stem}.dac{Path(name).suffix}"


def flip_a_weight(files: tuple[Path, ...]) -> None:
    """Change the sign of one weight, in whichever file holds it."""
    needle = WEIGHT.tobytes()[:256]
    for path in files:
        data = bytearray(path.read_bytes())
        if (at := data.find(needle)) >= 0:
            data[at + 3 + 4 * int(abs(WEIGHT).reshape(-1)[:64].argmax())] ^= 0x80
            path.write_bytes(data)
            return
    raise AssertionError("no file holds the weight")


def save_another_weight(files: tuple[Path, ...]) -> None:
    """Change a weight by way of the file's own library, so that its checksums are right."""
    content = torch.load(files[0], weights_only=False)
    weights = content if isinstance(content, dict) else content.state_dict()
    with torch.no_grad():
        weights["point.weight"][0, 0].neg_()
    torch.save(content, files[0])


def cut(files: tuple[Path, ...]) -> None:
    """Cut the file in half."""
    data = files[0].read_bytes()
    files[0].write_bytes(data[: len(data) // 2])


def break_writer(monkeypatch, fault) -> None:
    """Let every writer do ``fault`` to the files that it has written."""
    save = Conversion.save

    def broken(self, path, *, force=False):
        files = save(self, path, force=force)
        fault(files)
        return files

    monkeypatch.setattr(Conversion, "save", broken)


@pytest.mark.parametrize("fault", [flip_a_weight, cut])
@pytest.mark.parametrize("name", FILES)
def test_a_fault_of_the_writer_is_caught(run, zoo, monkeypatch, name, fault) -> None:
    target = zoo / converted(name)
    target.write_text("what was there")
    break_writer(monkeypatch, fault)
    done = run("convert", name, "--rank", 4, "--force", "--keep", *FILES[name])
    assert (done.code, done.new, done.kept) == (1, [], True)
    assert "gate missed: the written file " in done.err
    assert done.err.endswith("nothing was written\n")
    assert target.read_text() == "what was there"


@pytest.mark.parametrize("name", ["net.pth", "weights.pth", "module.pt"])
def test_other_weights_than_the_converted_ones_are_caught(run, zoo, monkeypatch, name) -> None:
    break_writer(monkeypatch, save_another_weight)
    done = run("convert", name, "--rank", 4, *FILES[name])
    assert (done.code, done.new) == (1, [])
    assert "does not hold what was converted: the weights of 1 of " in done.err
    assert "layers differ: point by" in done.err


@pytest.mark.parametrize("name", ["net.onnx", "net.pth"])
def test_a_fault_while_fusing_is_caught(run, zoo, monkeypatch, name) -> None:
    break_writer(monkeypatch, flip_a_weight)
    done = run("fuse", name, *FILES[name])
    assert (done.code, done.new) == (1, [])
    assert "gate missed: the written file " in done.err


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_written_under_its_own_name(run, zoo, name) -> None:
    done = run("convert", name, "--rank", 4, *FILES[name])
    assert (done.code, converted(name) in done.new) == (0, True), done.err
    if name == "large.onnx":
        assert len([new for new in done.new if re.fullmatch(DATA, new)]) == 1
        onnx.checker.check_model(onnx.load(zoo / converted(name)))
    again = run("inspect", converted(name), *FILES[name], "--json", "-")
    assert json.loads(again.out)["layers"]


def test_a_fault_in_one_of_many_models_stops_no_other(run, zoo, monkeypatch) -> None:
    def fault(files: tuple[Path, ...]) -> None:
        if "net" in files[0].name:
            flip_a_weight(files)

    break_writer(monkeypatch, fault)
    done = run("convert", "net.onnx", "large.onnx", "--rank", 4, "-O", "out")
    assert done.code == 1
    names = sorted(path.name for path in (zoo / "out").iterdir())
    assert re.fullmatch(DATA, names.pop())
    assert names == ["large.dac.onnx"]
    (zoo / "dacconv.toml").write_text('[jobs.one]\nmodel = "net.onnx"\nrank = 4\n')
    assert run("run").code == 1
    assert not list((zoo / "dist").iterdir())


def test_a_file_that_appears_meanwhile_is_not_overwritten(run, zoo, monkeypatch) -> None:
    break_writer(monkeypatch, lambda files: (zoo / "net.dac.onnx").write_text("mine"))
    done = run("convert", "net.onnx", "--rank", 4)
    assert done.code == 2
    assert (zoo / "net.dac.onnx").read_text() == "mine"


def test_a_dry_run_verifies_in_memory_and_says_so(run, zoo) -> None:
    done = run("convert", "net.onnx", "--rank", 4, "--dry-run", "--json", "r.json")
    assert (done.code, done.new) == (0, ["net.plan.json", "r.json"])
    assert "dry run: the model was converted in memory, and only the plan was written" in done.out
    dry = json.loads((zoo / "r.json").read_text())
    assert run("convert", "net.onnx", "--rank", 4, "--json", "s.json").code == 0
    real = json.loads((zoo / "s.json").read_text())
    assert dry["layers"] == real["layers"]
    error = dry["verification"]["relative_error"]
    assert error == pytest.approx(real["verification"]["relative_error"], rel=1e-3)
    gate = ("--dry-run", "--force", "--max-error", error / 2)
    missed = run("convert", "net.onnx", "--rank", 4, *gate)
    assert (missed.code, missed.new) == (1, [])
    assert "gate missed: relative error" in missed.err


# -- the folder in which a file waits for its name --------------------------------------------


def test_files_leave_the_folder_together(tmp_path) -> None:
    (tmp_path / "model").write_text("old")
    with staging(tmp_path / "model") as folder:
        assert folder.parent == tmp_path
        for name in ("model", "data", "rest"):
            (folder / name).write_text("new")
        written = publish((folder / "model", folder / "data"), tmp_path)
    assert written == (tmp_path / "model", tmp_path / "data")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "model": "new", "data": "new",
    }  # fmt: skip


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("name", ["net.dac.onnx", "n" * 240 + ".onnx"])
def test_what_killed_runs_left_is_removed_by_the_next(run, work, how, name) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from dacconv.support.files import staging\n"
        "with staging(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_bytes(b'half')\n"
        f"    os.kill(os.getpid(), {int(how)})"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code, name], env=environment)
        assert done.returncode == -how
        assert len([path for path in work.iterdir() if path.name.startswith(".")]) == 1
    assert run("convert", "net.onnx", "--rank", 4, "-o", name).code == 0
    assert (work / name).exists()
