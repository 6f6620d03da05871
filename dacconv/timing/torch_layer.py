"""One layer of a network in torch, as it is and split, to be timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from dacconv.formats.torch.convs import Builder
from dacconv.formats.torch.gradients import place_for
from dacconv.graph.types import Branches, Conv, Repeat


class _Copies(nn.Module):
    """What a rewritten program does before a conv that reads its source several times."""

    def __init__(self, copies: int, axes: int) -> None:
        super().__init__()
        self.copies, self.axis = copies, -1 - axes

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.cat([input] * self.copies, dim=self.axis)


@contextmanager
def opened(
    conv: Conv,
    shape: tuple[int, ...],
    branches: Branches | None,
    threads: int,
    *,
    device: str,
) -> Iterator[Callable[[], None]]:
    """What runs the layer once: the conv, or the ``branches`` in its place.

    Raises:
        UsageError: the device is not there.
    """
    where = place_for(device)
    before = torch.get_num_threads()
    with torch.no_grad():
        made = _module(((conv,),) if branches is None else branches)
        made = made.to(where).eval()
        source = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        data = torch.from_numpy(source).to(where)

    def run() -> None:
        with torch.inference_mode():
            made(data)
            if where.type == "cuda":
                torch.cuda.synchronize(where)

    torch.set_num_threads(threads)
    try:
        yield run
    finally:
        torch.set_num_threads(before)


def device_name(name: str) -> str:
    """``cuda:0 NVIDIA H100``.

    Raises:
        UsageError: the device is not there.
    """
    return f"{name} {torch.cuda.get_device_name(place_for(name))}"


def _module(branches: Branches) -> nn.Module:
    """The chains as a module; a program repeats its input by one concatenation."""
    builder, like = Builder(), nn.Conv1d(1, 1, 1)
    first, *rest = branches[0]
    if not isinstance(first, Repeat) or first.interleaved:
        return builder.branches(branches, like)
    return nn.Sequential(_Copies(first.copies, first.axes), builder.branches((tuple(rest),), like))
