"""Compiled code and tensors from elsewhere stop only the merges that they concern."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dacconv import apply
from dacconv.formats.torch.module.trace import Trace, trace
from dacconv.jobs.convert import fuse_file
from dacconv.settings import Settings

ARRAY = np.arange(8, dtype=np.float32)
Head = Callable[[Any, Tensor], Tensor]


def compiled(code: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(code)


@compiled
def scripted(x: Tensor) -> Tensor:
    return x.relu() * 2 + 1


@compiled
def scripted_in_place(x: Tensor) -> Tensor:
    x.mul_(2)
    return x.sum()


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid() * 3


@functools.lru_cache
def grid(size: int) -> Tensor:
    return torch.arange(float(size))


class Net(nn.Module):
    """A conv, then ``middle``, a BatchNorm, a ReLU, a conv and ``head``."""

    def __init__(self, head: Head = lambda _, y: y, middle: Head = lambda _, y: y) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.n = nn.BatchNorm2d(8)
        self.h = nn.Conv2d(8, 4, 1)
        self.compiled = compiled(Inner())
        self.head, self.middle = head, middle

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(self, self.c(x))
        return self.head(self, self.h(self.n(y).relu()))


def run(net: nn.Module) -> Trace:
    return trace(net.eval(), [torch.randn(1, 3, 8, 8)], {}, ["x"])


def with_default(_: Any, y: Tensor, step: Tensor = torch.arange(8.0)) -> Tensor:  # noqa: B008
    return y + step


def closure() -> Head:
    step = torch.arange(8.0)
    return lambda _, y: y + step


SAFE: dict[str, Head] = {
    "from_numpy": lambda _, y: y + torch.from_numpy(ARRAY),
    "from_numpy of shape": lambda _, y: y + torch.from_numpy(np.ones(y.shape[-1], np.float32)),
    "frombuffer": lambda _, y: y + torch.frombuffer(ARRAY, dtype=torch.float32),
    "from_dlpack": lambda _, y: y + torch.from_dlpack(ARRAY),
    "Tensor": lambda _, y: y + torch.Tensor([1.0]),
    "FloatTensor": lambda _, y: y + torch.FloatTensor([1.0]),
    "cache": lambda _, y: y + grid(8),
    "default argument": with_default,
    "closure": closure(),
    "scripted function": lambda _, y: scripted(y),
    "scripted module": lambda net, y: net.compiled(y),
    "scripted, used again": lambda net, y: net.compiled(scripted(y)) + y,
}
grid(8)


@pytest.mark.parametrize("name", SAFE)
def test_what_is_far_from_a_merge_does_not_stop_it(name):
    found = run(Net(SAFE[name]))
    assert found.notes == ()
    nodes = {node.name: node for node in found.nodes}
    assert nodes["n"].op == "affine"
    assert nodes["n"].skip is None
    assert nodes["n"].inputs == ("c:0",)
    assert [n.name for n in found.nodes if "c:0" in n.inputs] == ["n"]


@pytest.mark.parametrize("name", [n for n in SAFE if "scripted" in n])
def test_the_values_that_compiled_code_reads_are_recorded(name):
    found = run(Net(SAFE[name]))
    assert any("h:0" in node.inputs for node in found.nodes)
    made = {node.output for node in found.nodes}
    assert set(found.outputs) <= made
    last = next(node for node in found.nodes if node.output == found.outputs[0])
    assert last.inputs  # it hangs together with what comes before


def unseen(net: Any, y: Tensor) -> Tensor:
    result: list[Tensor] = []
    worker = threading.Thread(target=lambda: result.append(y.detach() * 2))
    worker.start()
    worker.join()
    return result[0]


def test_what_another_thread_does_is_still_in_doubt():
    found = run(Net(unseen))
    assert "could not be watched" in found.notes[0]
    assert all(node.skip for node in found.nodes if node.op == "affine")


def middle_read(net: Any, y: Tensor) -> Tensor:
    net.kept = scripted(y)
    return y


def middle_written(net: Any, y: Tensor) -> Tensor:
    scripted_in_place(y)
    return y


def middle_module(net: Any, y: Tensor) -> Tensor:
    return y + net.compiled(y)


MIDDLES = {"read": middle_read, "written": middle_written, "module": middle_module}


class Middle(Net):
    kind = ""

    def __init__(self) -> None:
        super().__init__()
        self.head = self.middle = None

    def forward(self, x: Tensor) -> Tensor:
        y = MIDDLES[self.kind](self, self.c(x))
        y = self.h(self.n(y).relu())
        return y if self.kind != "read" else y + self.kept.mean()


class ReadNet(Middle):
    kind = "read"


class WrittenNet(Middle):
    kind = "written"


class ModuleNet(Middle):
    kind = "module"


@pytest.mark.parametrize("kind", [ReadNet, WrittenNet, ModuleNet])
def test_compiled_code_between_two_layers_keeps_them_apart(tmp_path, kind):
    """The output of the conv is read, or changed, by code that no torch function mode sees."""
    torch.manual_seed(0)
    net = kind().eval()
    net.n.running_mean.normal_()
    net.n.running_var.uniform_(0.5, 2)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    settings = Settings(arch=f"{__name__}:{kind.__name__}", input_shape=("1,3,8,8",), threads=1)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = net(x)
    outcome = fuse_file(tmp_path / "net.pth", settings)
    assert outcome.report.missed == ()
    merged = {name for each in outcome.report.fused for name in each.absorbed}
    assert "c" not in merged
    changed = apply(kind().eval(), outcome.written[0])
    with torch.no_grad():
        assert torch.allclose(changed(x), expected, atol=1e-5)


def test_the_functions_of_torch_are_themselves_again():
    before = torch.from_numpy, torch.frombuffer, torch.from_dlpack
    run(Net(SAFE["from_numpy"]))
    assert (torch.from_numpy, torch.frombuffer, torch.from_dlpack) == before
