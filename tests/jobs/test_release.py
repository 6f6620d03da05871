"""A release: what its file says is what is done, the same every time, and all or no checksums."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from dacconv.errors import UsageError
from dacconv.jobs.release import read_release
from dacconv.settings import Settings

RELEASE = """
output-dir = "dist"
reports = ["markdown", "json"]

[defaults]
rank = 3
samples = 2
skip = "conv1"

[jobs.small]
model = "net.onnx"
output = "models/small.onnx"
last-k = 1

[jobs.weights]
model = "net.pth"
first-k = 2
energy = 0.5
"""


def write(folder: Path, text: str = RELEASE) -> Path:
    path = folder / "dacconv.toml"
    path.write_text(text)
    return path


def test_jobs_have_the_defaults_and_their_own(tmp_path) -> None:
    release = read_release(write(tmp_path))
    small, weights = release.tasks
    assert small.settings == Settings(rank=3, samples=2, skip=("conv1",), last_k=1)
    assert weights.settings == Settings(energy=0.5, samples=2, skip=("conv1",), first_k=2)
    assert (small.source, small.output) == (Path("net.onnx"), Path("dist/models/small.onnx"))
    assert weights.output == Path("dist/net.dac.pth")
    assert small.reports["markdown"] == Path("dist/models/small.onnx.md")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("jobs = 3", "is not a table"),
        ("", "lists no job"),
        ("[jobs.a]\nrank = 2", "names no model"),
        ("[jobs.a]\nmodel = 3", "is not text"),
        ("[jobs.a]\nmodel = 'x.onnx'\nrnak = 2", "the nearest is 'rank'"),
        ("[jobs.a]\nmodle = 'x.onnx'", "the nearest is 'model'"),
        ("[default]\nrank = 2\n[jobs.a]\nmodel = 'x.onnx'", "the nearest is 'defaults'"),
        ("[defaults]\nmodel = 'x.onnx'\n[jobs.a]\nmodel = 'x.onnx'", "unknown key 'model'"),
        ("[jobs.a]\nmodel = 'x.onnx'\nrank = 'two'", "jobs.a, rank: 'two' is not int"),
        ("[jobs.a]\nmodel = 'x.onnx'\noutput = '../x.onnx'", "outside"),
        ("[jobs.a]\nmodel = 'x.onnx'\noutput = '.'", "is a folder; name a file"),
        ("[jobs.a]\nmodel = 'x.onnx'\noutput = './'", "is a folder; name a file"),
        ("[jobs.a]\nmodel = '.'", "is a folder; name a file"),
        ('[jobs.a]\nmodel = "a\\u0000"', "holds a null byte"),
        ('output-dir = "a\\u0000"\n[jobs.a]\nmodel = "x.onnx"', "holds a null byte"),
        ("reports = ['pdf']\n[jobs.a]\nmodel = 'x.onnx'", "not a list of json, markdown, html"),
        ("jobs = [", "not readable as TOML"),
    ],
)
def test_mistakes_are_told_where_they_are(tmp_path, text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_release(write(tmp_path, text))
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def outputs(folder: Path) -> dict[str, bytes]:
    made = ("*.onnx", "*.pth", "*.plan.json", "SHA256SUMS")
    return {str(p.relative_to(folder)): p.read_bytes() for g in made for p in folder.rglob(g)}


def test_a_release_is_the_same_twice_and_wherever_it_lies(run, work, monkeypatch) -> None:
    write(work)
    done = run("run")
    assert done.code == 0
    first = outputs(work / "dist")
    assert set(first) == {
        "models/small.onnx",
        "net.dac.pth",
        "net.dac.plan.json",
        "SHA256SUMS",
    }
    for line in first["SHA256SUMS"].decode().splitlines():
        digest, _, name = line.partition("  ")
        assert hashlib.sha256(first[name]).hexdigest() == digest
    if sums := shutil.which("sha256sum"):
        subprocess.run([sums, "-c", "--strict", "SHA256SUMS"], cwd=work / "dist", check=True)
    assert (work / "dist/models/small.onnx.md").exists()

    there = work / "elsewhere" / "deep"
    there.mkdir(parents=True)
    for name in ("net.onnx", "net.pth", "dacconv.toml"):
        shutil.copy(work / name, there)
    assert run("run", "elsewhere/deep/dacconv.toml").code == 0
    assert outputs(there / "dist") == first

    again = run("run")
    assert again.code == 2
    assert "exists already" in again.err
    assert run("run", "--force").code == 0
    assert outputs(work / "dist") == first


def test_no_checksums_where_a_job_fails(run, work) -> None:
    text = RELEASE + "\n[jobs.strict]\nmodel = 'net.onnx'\nmax-error = 1e-9\n"
    write(work, text)
    (work / "dist").mkdir()
    (work / "dist/SHA256SUMS").write_text("old")
    done = run("run", "--force")
    assert done.code == 1
    assert [line.split()[:2] for line in done.out.splitlines()[1:]] == [
        ["small", "done"],
        ["weights", "done"],
        ["strict", "gate"],
    ]
    assert "gate missed: strict: relative error" in done.err
    assert set(outputs(work / "dist")) == {"models/small.onnx", "net.dac.pth", "net.dac.plan.json"}


def test_a_dry_run_makes_plans_only(run, work) -> None:
    write(work)
    assert run("run", "--dry-run").code == 0
    made = sorted(p.name for p in (work / "dist").rglob("*") if p.is_file())
    assert made == [
        "net.dac.plan.json",
        "net.dac.plan.json.json",
        "net.dac.plan.json.md",
        "small.plan.json",
        "small.plan.json.json",
        "small.plan.json.md",
    ]


def test_there_must_be_a_file(run) -> None:
    done = run("run")
    assert done.code == 2
    assert "dacconv.toml: no such file" in done.err
