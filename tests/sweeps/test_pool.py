"""Points measured by other processes, on this machine and on a Dask cluster of it."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from joblib.externals.loky import get_reusable_executor, process_executor

from dacconv.errors import UsageError
from dacconv.jobs import sweep as sweep_job
from dacconv.settings import Settings, SweepOptions
from dacconv.sweeps import pool
from dacconv.sweeps.files import Journal, read_sweep
from tests import cli_nets

SLOW = '''
import os, time

def slow(net):
    """Leaves a trace of who did it, and takes its time."""
    with open(os.path.join(os.path.dirname(__file__), f"pid-{os.getpid()}"), "a") as trace:
        trace.write("point\\n")
    time.sleep(0.1)
    return 1.0
'''


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    onnx.save(cli_nets.onnx_model(), tmp_path / "net.onnx")
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own_processes():
    """joblib keeps its processes, which go on living in the folder of the test."""
    yield
    get_reusable_executor().shutdown(wait=True)


def rows(model="net.onnx", arch=None, **more):
    options = SweepOptions(mode=("single", "last-k"), ranks="1-9", **more)
    settings = Settings(samples=3, arch=arch, input_shape=("1,3,12,12",) if arch else ())
    return sweep_job.sweep_file(Path(model), settings, options, output=Path("r.csv")).sweep.rows


def test_a_worker_may_open_a_large_model(monkeypatch):
    """joblib ends workers that gain 300 MB, and can wait for ever for what they were doing."""
    monkeypatch.setattr(process_executor, "_MAX_MEMORY_LEAK_SIZE", 0)
    bench = SimpleNamespace(measure=lambda points: points)
    monkeypatch.setitem(pool._benches, "open", bench)
    assert pool._measure_part(pool.Work(Path("x"), None, None, "open"), ()) == []
    assert math.inf == process_executor._MAX_MEMORY_LEAK_SIZE


@pytest.mark.parametrize("how", ["threads", "processes", "state dict"])
def test_two_jobs_find_what_one_does(work, own_processes, how):
    """Threads where a runtime does the work, else processes."""
    cli_nets.write_all(work)
    more = {
        "threads": {},
        "processes": {"task": "slow.py:slow"},
        "state dict": {"model": "net.pth", "arch": f"{cli_nets.__file__}:SmallNet"},
    }[how]
    found = rows(jobs=2, **more)
    traces = {path.name for path in work.glob("pid-*")}
    assert (f"pid-{os.getpid()}" in traces) == (how == "processes")  # the original
    assert len(traces) == (3 if how == "processes" else 0)
    (work / "r.csv").unlink()
    expected = rows(jobs=1, **more)
    assert [row.label for row in found] == [row.label for row in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.output_error == pytest.approx(theirs.output_error, rel=1e-4, abs=1e-6)
        assert (mine.agreement, mine.macs) == (theirs.agreement, theirs.macs)


def _start(stack: ExitStack, *command: str, folder: Path) -> subprocess.Popen[bytes]:
    program = Path(sys.executable).with_name("dask")
    process = subprocess.Popen(
        [str(program), *command], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def test_a_worker_that_is_killed_in_mid_sweep_loses_nothing(work, tmp_path_factory, monkeypatch):
    """A real scheduler and two workers on loopback; one is killed while points come in."""
    pytest.importorskip("distributed")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    with ExitStack() as stack:
        _start(stack, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard",
               folder=elsewhere)  # fmt: skip
        workers = [
            _start(stack, "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard",
                   folder=elsewhere)
            for _ in range(2)
        ]  # fmt: skip
        _wait_for_workers(address, 2)
        killed: list[int] = []
        add = Journal.add

        def add_and_kill(self, row):
            add(self, row)
            busy = [w for w in workers if (work / f"pid-{w.pid}").exists()]
            if not killed and len(busy) == 2:
                busy[0].send_signal(signal.SIGKILL)
                killed.append(busy[0].pid)

        monkeypatch.setattr(Journal, "add", add_and_kill)
        found = rows(dask=address, task="slow.py:slow")
    assert killed
    assert len(found) == 1 + 27 + 27
    assert len({row.label for row in found}) == len(found)
    assert {row.task["task"] for row in found} == {1.0}
    assert read_sweep(work / "r.csv").rows == found


def _wait_for_workers(address: str, count: int) -> None:
    from distributed import Client

    until = time.monotonic() + 60
    while True:
        try:
            with Client(address, timeout=2, set_as_default=False) as client:
                client.wait_for_workers(count, timeout=60)
                return
        except OSError:
            if time.monotonic() > until:
                raise


def test_a_cluster_that_is_not_there(work, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setattr("dacconv.sweeps.pool.CONNECT_SECONDS", 1)
    with pytest.raises(UsageError, match="no scheduler answers"):
        rows(dask=f"tcp://127.0.0.1:{port}")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError) as error:
        rows(dask="tcp://127.0.0.1:1")
    assert "dacconv[cluster]" in str(error.value)
