"""The wheel and the source distribution: complete, valid, and good for work on their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The folder of both, the wheel made from the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


def run(*words: object, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=os.environ | env, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_both_are_valid(made) -> None:
    told = run(sys.executable, "-m", "twine", "check", "--strict", *made.iterdir(), cwd=made)
    assert told.count("PASSED") == 2


def test_the_wheel_works_where_there_is_nothing_else_of_the_project(made, assets) -> None:
    (wheel,) = made.glob("*.whl")
    site = made / "site"
    run(sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet",
        "--no-deps", "--no-index", "--target", site, wheel, cwd=made)  # fmt: skip
    here = {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    where = run(sys.executable, "-c", "import dacconv; print(dacconv.__file__)", cwd=made, **here)
    assert Path(where.strip()).is_relative_to(site)
    assert run(site / "bin" / "dacconv", "--version", cwd=made, **here).startswith("dacconv ")
    model = made / "net.onnx"
    model.write_bytes((assets / "fashion.onnx").read_bytes())
    run(site / "bin" / "dacconv", "convert", model, "--rank", 3, "--samples", 1,
        "--html", "page.html", cwd=made, **here)  # fmt: skip
    assert "</html>" in (made / "page.html").read_text("utf-8")
    assert (made / "net.dac.onnx").exists()


def test_the_source_distribution_has_what_its_tests_need(made) -> None:
    (archive,) = made.glob("*.tar.gz")
    with tarfile.open(archive) as held:
        names = {name.partition("/")[2] for name in held.getnames()}
    listed = run("git", "ls-files", cwd=ROOT).split("\n") if (ROOT / ".git").exists() else []
    wanted = {
        name for name in listed if name.startswith(("dacconv/", "tests/", "docs/", "scripts/"))
    }
    assert wanted <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "constraints.txt", "Makefile"} <= names
