"""One conv of every kind, between two pointwise ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from plain_nets import randomized
from torch import nn

KINDS: Mapping[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "strided": lambda: nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(1, 0), bias=False),
    "dilated": lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=(2, 1), padding_mode="reflect"),
    "even": lambda: nn.Conv2d(4, 6, (2, 4), stride=2),
    "wide": lambda: nn.Conv2d(4, 6, (3, 5), padding=(1, 2)),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1),
    "one axis": lambda: nn.Conv1d(4, 6, 3, padding=1),
    "three axes": lambda: nn.Conv3d(4, 6, 3, padding=1),
}


def axes(kind: str) -> int:
    return {"one axis": 1, "three axes": 3}.get(kind, 2)


def shape(kind: str) -> tuple[int, ...]:
    return (1, 4, *(9 for _ in range(axes(kind))))


def make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return randomized(nn.Sequential(KINDS[kind](), nn.ReLU())).eval()
