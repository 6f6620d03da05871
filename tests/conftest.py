"""What every test may ask for."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest

from dacconv.support import threads

threads.THREADS = 1  # tests that run side by side share the cores
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")  # a busy machine is no failure
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real checkpoints, which the project does not carry."""
    folder = Path(os.environ.get("DACCONV_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real checkpoints are not at {folder}; set DACCONV_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def assets() -> Path:
    """The small real network and images that the repository carries."""
    return ROOT / "tests" / "assets"


@pytest.fixture(scope="session")
def nets(tmp_path_factory) -> Path:
    """A small network in every format; see ``cli_nets``."""
    from tests import cli_nets

    folder = tmp_path_factory.mktemp("nets")
    cli_nets.write_all(folder)
    return folder


@pytest.fixture
def work(nets, tmp_path, monkeypatch) -> Path:
    """A folder with copies of the small networks, which the test runs in."""
    for source in nets.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(work, monkeypatch, capfd):
    """Run a command as a user types it: its exit code, output, and what it did to the folder.

    ``own`` is code of the user's whose traceback may be shown.
    """
    from dacconv.cli import app as cli

    def call(*args: object, own: str = "") -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["dacconv", *map(str, args)])
        before = {p: p.read_bytes() for p in work.iterdir() if p.is_file()}
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        assert own or "Traceback" not in out + err
        assert "bug in dacconv" not in err
        assert not [p for p in work.iterdir() if p.name.startswith(".")], "a partial file"
        new = sorted(p.name for p in work.iterdir() if p not in before)
        kept = all(p.read_bytes() == data for p, data in before.items())
        return SimpleNamespace(code=stop.value.code or 0, out=out, err=err, new=new, kept=kept)

    return call
