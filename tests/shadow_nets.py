"""Networks with attributes of their own under the names of torch's methods."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Shadowing(nn.Module):
    """Keeps ``value`` in the attribute ``name``, at the top and one level down."""

    def __init__(self, name: str, value: object = 3) -> None:
        super().__init__()
        self.body = Body(name, value)
        self.tail = nn.Conv2d(8, 4, 3, padding=1)
        setattr(self, name, value)
        self.last = "kept"

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.body(x))


class Body(nn.Module):
    def __init__(self, name: str, value: object) -> None:
        super().__init__()
        setattr(self, name, value)
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


class Holding(nn.Module):
    """Calls its layers by a plain list, under the name of a method of torch."""

    def __init__(self, name: str = "modules") -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 8, 3, padding=1)
        self.name = name
        setattr(self, name, [self.a, self.b])

    def forward(self, x: Tensor) -> Tensor:
        for layer in getattr(self, self.name):
            x = layer(x).relu()
        return self.c(x)


def shadowing(name: str) -> nn.Module:
    torch.manual_seed(0)
    return Shadowing(name)


def holding(name: str) -> nn.Module:
    torch.manual_seed(0)
    return Holding(name)
