"""Every path that is written passes one gate."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dacconv.errors import UsageError
from dacconv.support import files
from dacconv.support.files import replacing, write_text
from dacconv.support.outputs import Output, check_outputs, identity, report_outputs


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").write_bytes(b"model")
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "folder").mkdir()
    Path("link").symlink_to("model")
    Path("dangling").symlink_to("nowhere")
    Path("here").symlink_to(".")
    os.link("model", "hard")
    return tmp_path


def refusal(*outputs: Output, force: bool = False, inputs: tuple[str, ...] = ("model",)) -> str:
    with pytest.raises(UsageError) as caught:
        check_outputs(outputs, map(Path, inputs), force=force)
    return str(caught.value)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["model", "link", "hard", "here/model", "folder/../model"])
def test_an_input_is_never_overwritten_whatever_it_is_called(name: str, force: bool) -> None:
    assert "is an input" in refusal(Output(Path(name), "--json"), force=force)
    assert "is an input" in refusal(Output(Path(name), "-o", continued=True), force=force)


@pytest.mark.parametrize(
    ("first", "second"),
    [("new", "new"), ("new", "here/new"), ("other", "here/other"), ("new", "./folder/../new")],
)
def test_two_outputs_are_never_one_file(first: str, second: str) -> None:
    outputs = Output(Path(first), "-o"), Output(Path(second), "--html")
    assert "--html" in refusal(*outputs, force=True)
    assert "is also written for -o" in refusal(*outputs, force=True)
    check_outputs([Output(Path("a"), "-o"), Output(Path("folder/a"), "--html")], [], force=False)


def test_what_exists_needs_force() -> None:
    assert "other: exists already" in refusal(Output(Path("other"), "-o"))
    check_outputs([Output(Path("other"), "-o")], [Path("model")], force=True)
    check_outputs([Output(Path("other"), "-o", continued=True)], [Path("model")], force=False)


@pytest.mark.parametrize("force", [False, True])
def test_only_regular_files_are_written(place, force: bool) -> None:
    os.mkfifo("pipe")
    Path("to-pipe").symlink_to("pipe")
    Path("to-null").symlink_to("/dev/null")
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket")
    server.close()
    kinds = {
        "pipe": "named pipe",
        "to-pipe": "named pipe",
        "socket": "socket",
        "/dev/null": "device",
        "to-null": "device",
        "folder": "folder",
        ".": "folder",
        "folder/": "folder",
        "..": "folder",
        "dangling": "link to a file that does not exist",
        "/dev/new-file": "file of the system",
        "/proc/self/comm": "file of the system",
        "missing/new": "its folder does not exist",
        "model/new": "its folder does not exist",
        "a\0b": "null byte",
        "x" * 300: "cannot be read",
    }
    for name, words in kinds.items():
        assert words in refusal(Output(Path(name), "-o"), force=force), name
        assert words in refusal(Output(Path(name), "-o", continued=True), force=force), name
    assert "--json - writes to standard output" in refusal(Output(Path("/dev/null"), "--json"))


def test_standard_output_is_told_of_where_it_is_a_file(place) -> None:
    """``/dev/stdout`` may be a link to a regular file, and is still no file to replace."""
    code = (
        "from pathlib import Path; from dacconv.support.outputs import *\n"
        "check_outputs([Output(Path('/dev/stdout'), '--html')], [], force=True)"
    )
    with Path("captured").open("w") as stream:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=stream, stderr=subprocess.PIPE, text=True
        )
    assert "--html - writes to standard output" in done.stderr


def test_reports_are_named_by_their_options() -> None:
    reports = {"json": Path("-"), "html": Path("a.html"), "plots": Path("figures")}
    outputs = report_outputs(reports)
    assert {output.option for output in outputs} == {"--html", "--plots"}
    assert Path("figures/costs.png") in {output.path for output in outputs}
    check_outputs(outputs, [], force=False)  # the folder of figures is created later
    Path("figures").mkdir()
    Path("figures/costs.svg").touch()
    assert "figures/costs.svg: exists already" in refusal(*outputs)


def test_identity_of_what_is_not_there_yet() -> None:
    assert identity(Path("new")) == identity(Path("here/new"))
    assert identity(Path("new")) != identity(Path("folder/new"))
    assert identity(Path("missing/new")) == identity(Path("here/missing/new"))


def _killed(target: Path) -> None:
    """A process that is killed while it writes ``target``."""
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from dacconv.support.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as (temporary,):\n"
        "    temporary.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(target)]).returncode == -9


@pytest.mark.parametrize("name", ["new.bin", "n" * 240 + ".bin", "üñ\udcff.bin", "[a]*.bin"])
def test_the_next_run_removes_what_killed_runs_left(place, name: str) -> None:
    target = Path(name)
    before = set(os.listdir())
    for _ in range(3):
        _killed(target)
    (left,) = set(os.listdir()) - before  # each run removes what the one before it left
    assert left.startswith(".")
    assert not target.exists()
    write_text(target, "x")
    assert set(os.listdir()) - before == {name}
    _killed(target)
    check_outputs([Output(target)], [], force=True)
    assert set(os.listdir()) - before == {name}
    assert target.read_text() == "x"


def test_files_of_running_processes_and_other_machines_stay(place, monkeypatch) -> None:
    target = Path("new.bin")
    with replacing(target) as (temporary,):
        write_text(target, "of another thread")
        assert temporary.exists()
        temporary.write_text("last")
    assert target.read_text() == "last"
    monkeypatch.setattr(files, "_host", lambda: "0" * 8)
    _killed(target)
    write_text(target, "here")
    assert len([name for name in os.listdir() if name.startswith(".new.bin.")]) == 1


def test_a_process_of_the_same_number_is_not_taken_for_the_one_that_was_killed(place) -> None:
    host = files._host()
    Path(f".new.bin.dacconv-{host}-{os.getpid()}-1-abc.tmp.bin").touch()
    Path(f".new.bin.dacconv-{host}-{2**40}-1-abc.tmp.bin").touch()
    Path(".new.bin.swp").touch()
    write_text(Path("new.bin"), "x")
    assert [name for name in os.listdir() if name.startswith(".")] == [".new.bin.swp"]
