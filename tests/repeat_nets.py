"""Networks that call the same layers several times."""

from __future__ import annotations

import torch
from plain_nets import randomized
from torch import Tensor, nn


class Loop(nn.Module):
    """A body that is called ``times`` times: a conv, a BatchNorm and what is given besides."""

    def __init__(self, *more: nn.Module, times: int = 3, before: nn.Module | None = None) -> None:
        super().__init__()
        first = () if before is None else (before,)
        pad = 0 if isinstance(before, nn.ZeroPad2d) else 1
        conv = nn.Conv2d(8, 8, 3, padding=pad, bias=False)
        self.body = nn.Sequential(*first, conv, nn.BatchNorm2d(8), *more, nn.ReLU())
        self.tail = nn.Conv2d(8, 4, 3, padding=1)
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = x + self.body(x)
        return self.tail(x)


class OwnNorms(Loop):
    """One conv, and a BatchNorm of its own for each call."""

    def __init__(self) -> None:
        super().__init__(times=2)
        self.other = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.tail(self.other(self.body[0](x)))


class SometimesAlone(Loop):
    """The conv is also called without its BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.body[0](self.body(self.body(x))))


class SometimesRead(Loop):
    """At one of the calls, what the conv makes is also read by something else."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        y = self.body[0](x)
        return self.tail(self.body[1](y) + y.relu())


class NormTwice(nn.Module):
    """One BatchNorm after two convs."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.b(self.norm(self.a(x)).relu()))


class PadTwice(nn.Module):
    """One padding layer before two convs."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d(1)
        self.a = nn.Conv2d(8, 8, 3)
        self.b = nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.pad(self.a(self.pad(x)).relu()))


def _seeded(make: type[nn.Module], *args: object, **kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    return randomized(make(*args, **kwargs)).eval()


def loop() -> nn.Module:
    return _seeded(Loop)


def loop_of_a_chain() -> nn.Module:
    return _seeded(Loop, nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), times=2)


def loop_with_a_norm_first() -> nn.Module:
    return _seeded(Loop, before=nn.BatchNorm2d(8), times=2)


def padded_loop() -> nn.Module:
    return _seeded(Loop, before=nn.ZeroPad2d(1), times=2)


def own_norms() -> nn.Module:
    return _seeded(OwnNorms)


def sometimes_alone() -> nn.Module:
    return _seeded(SometimesAlone)


def sometimes_read() -> nn.Module:
    return _seeded(SometimesRead)


def norm_twice() -> nn.Module:
    return _seeded(NormTwice)


def pad_twice() -> nn.Module:
    return _seeded(PadTwice)


MERGED = {loop: 0, loop_of_a_chain: 0, loop_with_a_norm_first: 1, padded_loop: 0}
"""Layers that are always called together: how many BatchNorms are left."""
NOT_MERGED = (own_norms, sometimes_alone, sometimes_read, norm_twice, pad_twice)
