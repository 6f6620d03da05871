"""Whatever happens, the program ends with one message and the right exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROGRAM = [sys.executable, "-m", "dacconv"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def dacconv(*arguments: object, **more: object) -> subprocess.CompletedProcess[bytes]:
    command = [*PROGRAM, *(a if isinstance(a, bytes) else str(a) for a in arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.run(command, env=ENVIRONMENT, timeout=120, **streams)  # type: ignore[call-overload]


def assert_clean(done: subprocess.CompletedProcess[bytes], code: int) -> None:
    for words in (b"Traceback", b"bug in dacconv", b"Exception ignored"):
        assert words not in done.stderr, done.stderr.decode()
    assert done.returncode == code, done.stderr.decode()


def test_a_reader_that_stops_reading(work) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for options in ((), ("--json", "-")):
        done = dacconv("inspect", "net.onnx", *options, stdout=writing)
        assert_clean(done, 3)
        assert b"cannot write to standard output: Broken pipe" in done.stderr
    os.close(writing)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_behind_standard_output(work) -> None:
    with Path("/dev/full").open("w") as full:
        done = dacconv("convert", "net.onnx", "--rank", 1, "--no-verify", stdout=full)
    assert_clean(done, 3)
    assert b"No space left" in done.stderr
    assert (work / "net.dac.onnx").exists()
    assert b"nothing was written" not in done.stderr.lower()


def test_closed_streams(work) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *PROGRAM, "inspect", "net.onnx"],
        env=ENVIRONMENT, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert_clean(done, 2)
    assert b"standard output is closed" in done.stderr
    done = subprocess.run(
        ["sh", "-c", '"$@" 2>&- <&-', "sh", *PROGRAM, "inspect", "net.onnx", "--json", "r.json"],
        env=ENVIRONMENT, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert done.returncode == 0
    assert (work / "r.json").read_text().startswith("{")


def test_names_that_are_not_utf_8(work) -> None:
    name = b"n\xff\xfe.onnx"
    Path(os.fsdecode(name)).write_bytes((work / "net.onnx").read_bytes())
    done = dacconv("convert", name, "--rank", 1, "--no-verify", "--json", "r.json", "--html", "r")
    assert_clean(done, 0)
    assert rb"wrote n\udcff\udcfe.dac" in done.stdout
    assert_clean(dacconv("inspect", b"n\xff\xfe.dac.onnx"), 0)
    assert_clean(dacconv("inspect", b"none\xff.onnx"), 3)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_names_that_torch_cannot_open(work, suffix: str) -> None:
    name = b"n\xff\xfe" + suffix.encode()
    Path(os.fsdecode(name)).write_bytes((work / f"net{suffix}").read_bytes())
    done = dacconv("convert", name, "--rank", 1, "--no-verify")
    assert_clean(done, 3)
    assert b"its name is not UTF-8" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("convert", "net.onnx", "--rank", b"\xff"),
        ("convert", "net.onnx", "--config", b"\xff.toml"),
        ("convert", "net.onnx", "--plan", b"\xff.json"),
        ("convert", "net.onnx", "--rank", "1", "--layers", b"\xff*"),
        ("convert", "net.onnx", b"--\xff"),
        (b"\xff",),
    ],
)
def test_arguments_that_are_not_utf_8(work, arguments) -> None:
    assert_clean(dacconv(*arguments), 2)


@pytest.mark.parametrize("delay", [0.03, 0.1, 0.2, 0.4, 0.8, 1.5])
def test_an_interruption_at_any_time(work, delay: float) -> None:
    command = [*PROGRAM, "sweep", "net.onnx", "--jobs", "2", "-o", "r.csv", "--samples", "64"]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if b"interrupted" not in err and b"cli/app" not in err:  # before our first line, or after
        return
    assert process.returncode == 130
    assert err.replace(b"dacconv: interrupted\n", b"") == b""
    assert not [name for name in os.listdir() if name.startswith(".")]
