"""One layer of a network in torch, as it is and split, to be timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from dacconv.decompositions.forms import Branches, Spelled, lowered
from dacconv.formats.torch.convs import Builder
from dacconv.formats.torch.gradients import place_for
from dacconv.graph.types import Conv


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
    form: str,
    threads: int,
    *,
    plain: bool,
    device: str,
) -> Iterator[Callable[[], None]]:
    """What runs the layer once: the conv, or the ``branches`` in its place.

    ``plain``: of torch.nn layers, as in a module; else of the calls of an exported program.

    Raises:
        UsageError: the device is not there.
    """
    where = place_for(device)
    before = torch.get_num_threads()
    like = nn.Conv1d(1, 1, 1)
    builder = Builder()
    with torch.no_grad():
        if branches is None:
            made = builder.chain([conv], like)
        elif plain or form != "repeat":
            made = builder.chain(branches[0], like, form)
        else:
            ((first, *others),) = lowered(branches, form, Spelled())
            rest = builder.chain([_as_one(first), *others], like)
            copies = _Copies(first.copies, len(first.kernel))
            made = nn.Sequential(copies, rest) if first.copies > 1 else rest
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


def _as_one(conv: Conv) -> Conv:
    """The conv that reads all copies as one source."""
    return replace(conv, copies=1)
