from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dacconv.formats.torch.module.trace import Trace, trace

STEP = torch.tensor(0.5)
Head = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """A conv and a BatchNorm, then code that uses tensors of its own."""

    scale = torch.tensor([2.0])

    def __init__(self, head: Head, middle: Head = lambda _, y: y) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.n = nn.BatchNorm2d(8)
        self.h = nn.Conv2d(8, 4, 1)
        self.register_buffer("shift", torch.zeros(1))
        self.k = torch.tensor(2.0)
        self.grid = [torch.empty(0)]
        self.table: dict[str, Any] = {"a": [torch.ones(3)]}
        self.box = SimpleNamespace(step=torch.ones(1))
        self.head, self.middle = head, middle

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(self, self.c(x))
        return self.head(self, self.h(self.n(y).relu()))


def run(head: Head, middle: Head = lambda _, y: y) -> Trace:
    net = Net(head, middle).eval()
    return trace(net, [torch.randn(1, 3, 8, 8)], {}, ["x"])


def cached(net: Any, y: Tensor) -> Tensor:
    if net.grid[0].shape[-1:] != y.shape[-1:]:
        net.grid[0] = torch.arange(y.shape[-1]).float()
    return y + net.grid[0]


def cached_in_dict(net: Any, y: Tensor) -> Tensor:
    if y.shape not in net.table:
        net.table[y.shape] = torch.linspace(0, 1, y.shape[-1])
    return y * net.table[y.shape]


def cached_as_attribute(net: Any, y: Tensor) -> Tensor:
    net.offset = torch.full((1,), 0.1)
    return y + net.offset


@pytest.mark.parametrize(
    "head",
    [
        lambda net, y: y * net.k,
        lambda net, y: y + net.table["a"][0][0],
        lambda net, y: y - net.box.step,
        lambda net, y: y * net.scale,
        lambda net, y: y * STEP,
        lambda net, y: y + torch.tensor(3.0),
        lambda net, y: y + net.shift,
        cached, cached_in_dict, cached_as_attribute,
    ],
)  # fmt: skip
def test_tensors_of_the_models_own_are_constants(head: Head) -> None:
    found = run(head)
    assert not found.notes
    assert next(node for node in found.nodes if node.name == "n").skip is None
    assert "c:0" not in found.outputs


@pytest.mark.parametrize(
    "keep",
    [
        lambda net, y: setattr(net, "last", y),
        lambda net, y: net.grid.append(y),
        lambda net, y: net.table.update(last=[y]),
        lambda net, y: setattr(net.box, "last", y),
    ],
)
def test_what_the_next_run_may_read_stays(keep: Callable[[Any, Tensor], object]) -> None:
    def middle(net: Any, y: Tensor) -> Tensor:
        keep(net, y)
        return y

    assert "c:0" in run(lambda _, y: y, middle).outputs


def test_a_buffer_that_the_run_writes_is_no_constant() -> None:
    def middle(net: Any, y: Tensor) -> Tensor:
        net.shift.copy_(y.mean())
        return y + net.shift

    found = run(lambda _, y: y, middle)
    add = next(node for node in found.nodes if node.kind == "add")
    assert add.op == "other"
    assert len(add.inputs) == 2


def test_a_plain_tensor_that_the_run_writes_is_no_constant() -> None:
    def middle(net: Any, y: Tensor) -> Tensor:
        net.k.view(-1)[0:1].copy_(y.mean())
        return y * net.k

    found = run(lambda _, y: y, middle)
    product = next(node for node in found.nodes if node.kind == "mul")
    assert product.op == "other"
    assert len(product.inputs) == 2


def test_memory_of_a_replaced_tensor_is_not_taken_for_it() -> None:
    """Activations must not be taken for constants that lay where they lie."""

    def middle(net: Any, y: Tensor) -> Tensor:
        net.table["a"] = []
        net.grid[0] = torch.zeros(0)
        for _ in range(20):
            y = y + y.new_zeros(3).sum()
        return y

    assert not run(lambda _, y: y, middle).notes
