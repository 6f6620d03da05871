"""Worker processes: what they answer, and what is told when they do not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.base import LoadOptions
from dacconv.formats.timing import Setting
from dacconv.graph.types import ValueSpec
from dacconv.timing.benchmark.client import Worker, _environment
from tests import cli_nets

INPUTS = (ValueSpec("image", (2, 3, 12, 12)),)
SETTING = Setting(threads=1)


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("nets") / "net.onnx"
    cli_nets.onnx.save(cli_nets.onnx_model(), path)
    return path


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_answers_until_it_is_killed(net) -> None:
    with Worker(net) as worker:
        with pytest.raises(UsageError, match="cannot be passed"):
            worker.load(LoadOptions(arch_args={"x": object()}), SETTING, INPUTS, 0)
        with pytest.raises(UsageError, match="is for torch models") as refused:
            worker.load(LoadOptions(), Setting(dtype="float16"), INPUTS, 0)
        assert refused.value.where == str(net)
        worker.load(LoadOptions(), SETTING, INPUTS, 0)
        turn = worker.run(0.0, 5)
        assert turn.runs == 5
        assert 0 < turn.median < 10
        assert 0 <= turn.interrupted <= 5
        held = worker.memory()
        assert worker.profile(2).runs == 2
        os.kill(worker.process_id, signal.SIGKILL)
        with pytest.raises(UnsupportedError, match=r"was ended by SIGKILL") as told:
            worker.run(1.0)
    assert told.value.where == str(net)
    assert "memory runs out" in told.value.hint
    assert not alive(worker.process_id)
    if sys.platform == "linux":
        assert 0 < held.runtime < held.peak
        assert 0 < held.running <= held.peak
        assert held.above_runtime == held.peak - held.runtime


def test_one_that_does_not_answer_is_given_up(net) -> None:
    with Worker(net, timeout=0.2) as worker:
        os.kill(worker.process_id, signal.SIGSTOP)
        with pytest.raises(UnsupportedError, match=r"no answer for 0\.2 s"):
            worker.load(LoadOptions(), SETTING, INPUTS, 0)
    assert not alive(worker.process_id)


def test_what_the_runtime_says_of_a_broken_file(net, tmp_path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(net.read_bytes()[:200])
    with Worker(broken) as worker, pytest.raises(UnsupportedError, match="does not take"):
        worker.load(LoadOptions(), SETTING, INPUTS, 0)


def test_user_code_may_print_and_may_crash(tmp_path) -> None:
    arch = tmp_path / "nets.py"
    arch.write_text(
        "import os, sys, torch\n"
        "os.write(1, b'noise\\n')\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.c = torch.nn.Conv2d(3, 4, 3)\n"
        "    def forward(self, x):\n"
        "        if x.shape[0] == 2:\n"
        "            print('goodbye', file=sys.stderr, flush=True)\n"
        "            os._exit(7)\n"
        "        print('loud')\n"
        "        return self.c(x)\n"
    )
    import torch

    torch.save(torch.nn.ModuleDict({"c": torch.nn.Conv2d(3, 4, 3)}).state_dict(), tmp_path / "n.pt")
    options = LoadOptions({"": (1, 3, 8, 8)}, arch=f"{arch}:Net")
    with Worker(tmp_path / "n.pt") as worker:
        worker.load(options, SETTING, (ValueSpec("x", (1, 3, 8, 8)),), 0)
        assert worker.run(0.0, 2).runs == 2
        with pytest.raises(UnsupportedError, match="ended with code 7") as told:
            worker.load(options, SETTING, (ValueSpec("x", (2, 3, 8, 8)),), 0)
    assert "goodbye" in told.value.hint


@pytest.mark.skipif(not hasattr(os, "getpgid"), reason="no signals")
def test_nothing_is_left_when_the_parent_is_gone(net) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from dacconv.timing.benchmark.client import Worker\n"
        "worker = Worker(Path(sys.argv[1]))\n"
        "print(worker.process_id, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(net)],
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(),
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert alive(worker)
        parent.kill()
    for _ in range(100):
        if not alive(worker):
            break
        time.sleep(0.1)
    assert not alive(worker)
