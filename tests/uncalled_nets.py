"""Networks that hold layers that a run does not call, or call as functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Scaled(nn.Module):
    """A head for each scale, one of which is called; and heads that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.up2 = nn.Sequential(nn.Conv2d(16, 64, 3, padding=1), nn.PixelShuffle(2))
        self.up3 = nn.Sequential(nn.Conv2d(16, 144, 3, padding=1), nn.PixelShuffle(3))
        self.narrow = nn.Conv2d(16, 16, 1, groups=4)
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.flat = nn.Linear(16, 8)
        self.norm = nn.BatchNorm2d(16)
        self.line = nn.Conv1d(4, 4, 3)

    def forward(self, x: Tensor, scale: int = 2) -> Tensor:
        x = self.b(self.a(x).relu())
        return self.up2(x) if scale == 2 else self.up3(x)


class Functional(nn.Module):
    """The last conv is a call of a function."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.kernel = nn.Parameter(torch.randn(4, 16, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.b(self.a(x).relu()), self.kernel)


def scaled() -> nn.Module:
    torch.manual_seed(0)
    return Scaled()


def functional() -> nn.Module:
    torch.manual_seed(0)
    return Functional()
