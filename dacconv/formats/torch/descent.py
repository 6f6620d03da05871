"""The factors of all layers improved together, by gradient descent.

The closed form takes layer by layer and cannot trade one's error for another's. Here the sum
over the layers of the relative squared output errors descends (Adam: Kingma and Ba 2015), the
original on the same inputs being the teacher (FitNets: Romero et al. 2015, arXiv 1412.6550).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.adam import adam

from dacconv.formats.base import Feeds, Forward
from dacconv.formats.torch.convs import to_numpy
from dacconv.graph.patches import paddings
from dacconv.graph.types import Array, Conv, FloatArray

F64 = NDArray[np.float64]

RATE = 0.01
"""The first moves of a factor, as a share of its root mean square."""
WARM = 0.1
"""The share of the steps in which the rate grows; after that it falls as a cosine."""
LAST = 0.02
BETAS = (0.9, 0.99)

_CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True, slots=True, eq=False)
class Factored:
    """A conv of the model, and the factors that take its place.

    ``formula`` is that of the method, such as ``oir,iryx->oiyx``; each factor is
    ``(g, *letters)`` and ``bias`` ``(out,)``.
    """

    node: str
    conv: Conv
    formula: str
    factors: tuple[FloatArray, ...]
    bias: F64


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What factors do on some inputs: the models' outputs, and each layer's relative error.

    ``powers`` are the variances of the original's conv outputs, summed over the channels.
    """

    expected: tuple[Mapping[str, Array], ...]
    actual: tuple[Mapping[str, Array], ...]
    errors: Mapping[str, float]
    powers: Mapping[str, float]


class _Layer:
    """A layer's original weights and factors as tensors at their place."""

    def __init__(self, layer: Factored, place: torch.device) -> None:
        def tensor(array: Array) -> Tensor:
            return torch.tensor(np.asarray(array, np.float32), device=place)

        self.layer = layer
        out = layer.conv.out_channels
        self.weight = tensor(layer.conv.weight)
        self.bias = tensor(np.zeros(out) if layer.conv.bias is None else layer.conv.bias)
        factors = [tensor(a) for a in (*layer.factors, layer.bias)]
        terms, _, result = layer.formula.partition("->")
        self.equation = ",".join(f"g{term}" for term in terms.split(",")) + f"->g{result}"
        self.sizes = [max(float(f.square().mean().sqrt()), 1e-3) for f in factors]
        self.free = [f / size for f, size in zip(factors, self.sizes, strict=True)]
        """The factors over their root mean squares: one rate of descent suits all."""

    def original(self, x: Tensor) -> Tensor:
        return self._convolved(x, self.weight, self.bias)

    def split(self, x: Tensor) -> Tensor:
        *factors, bias = self.factors()
        kernel = torch.einsum(self.equation, *factors).reshape(self.weight.shape)
        if kernel.requires_grad:  # channels come last in it, which the product is slow for
            kernel.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
        return self._convolved(x, kernel, bias)

    def factors(self) -> list[Tensor]:
        return [free * size for free, size in zip(self.free, self.sizes, strict=True)]

    def result(self) -> Factored:
        *factors, bias = (to_numpy(f).astype(np.float64) for f in self.factors())
        return replace(self.layer, factors=tuple(factors), bias=bias)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        conv = self.layer.conv
        pads = paddings(conv, tuple(x.shape[2:]))
        around = tuple(before for before, _ in pads)
        if conv.pad_mode != "zeros" or any(before != after for before, after in pads):
            mode = "constant" if conv.pad_mode == "zeros" else conv.pad_mode
            x = F.pad(x, [size for pair in reversed(pads) for size in pair], mode=mode)
            around = (0,) * len(pads)
        if len(pads) == 2:  # a quarter faster forth and back; what follows keeps the layout
            x = x.contiguous(memory_format=torch.channels_last)
        return _CONVS[len(pads)](x, weight, bias, conv.stride, around, conv.dilation)


def measure(
    run: Forward, layers: Sequence[Factored], batches: Sequence[Feeds], place: torch.device
) -> Measured:
    """The original and the factors side by side."""
    modules = {layer.node: _Layer(layer, place) for layer in layers}
    sums: dict[str, list[Tensor]] = {}
    expected, actual = [], []
    targets: dict[str, Tensor] = {}
    count = 0

    def teach(node: str, x: Tensor) -> Tensor:
        targets[node] = y = modules[node].original(x)
        return y.clone()  # what comes next may write into it

    def follow(node: str, x: Tensor) -> Tensor:
        y, target = modules[node].split(x), targets.pop(node).double()
        parts = (y.double() - target).square(), target, target.square()
        totals = [part.transpose(0, 1).flatten(1).sum(1) for part in parts]
        totals.append(torch.full_like(totals[0], target[:, 0].numel()))
        old = sums.get(node)
        sums[node] = totals if old is None else [a + b for a, b in zip(old, totals, strict=True)]
        return y

    with torch.no_grad():
        for feeds in batches:
            expected.append(run(feeds, teach))
            actual.append(run(feeds, follow))
            count += 1
    errors, powers = {}, {}
    for node, (error, first, second, n) in sums.items():
        power = float((second / n - (first / n).square()).clamp(min=0).sum())
        powers[node] = power
        errors[node] = float((error / n).sum()) / power if power > 0 else 0.0
    return Measured(tuple(expected), tuple(actual), errors, powers)


def tune(
    run: Forward,
    layers: Sequence[Factored],
    powers: Mapping[str, float],
    steps: Iterable[Sequence[Feeds]],
    count: int,
    place: torch.device,
    report: Callable[[int], None],
) -> list[Factored] | None:
    """The factors after ``count`` steps, each on the batches that ``steps`` gives it.

    ``powers`` are those of ``measure``. None where the errors are not finite.
    """
    modules = {layer.node: _Layer(layer, place) for layer in layers}
    free = [factor.requires_grad_(True) for layer in modules.values() for factor in layer.free]
    descent = _Descent(free)
    for index, batches in enumerate(steps):
        report(index)
        for feeds in batches:
            loss = _distance(run, modules, powers, feeds) / len(batches)
            if not bool(torch.isfinite(loss)):
                return None
            loss.backward()  # type: ignore[no-untyped-call]
        descent.step(RATE * _schedule(index, count))
    return [layer.result() for layer in modules.values()]


class _Descent:
    """Adam by torch's function: its class takes two seconds to import a compiler."""

    def __init__(self, free: Sequence[Tensor]) -> None:
        self.free = list(free)
        self.firsts, self.seconds = ([torch.zeros_like(one) for one in free] for _ in range(2))
        self.counts = [torch.zeros(()) for _ in free]

    def step(self, rate: float) -> None:
        """One step along the gradients, which are then forgotten."""
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in self.free]
        with torch.no_grad():
            adam(
                self.free, gradients, self.firsts, self.seconds, [], self.counts, foreach=True,
                amsgrad=False, beta1=BETAS[0], beta2=BETAS[1], lr=rate, weight_decay=0.0,
                eps=1e-8, maximize=False,
            )  # fmt: skip
        for one in self.free:
            one.grad = None


def _distance(
    run: Forward, modules: Mapping[str, _Layer], powers: Mapping[str, float], feeds: Feeds
) -> Tensor:
    targets: dict[str, Tensor] = {}
    terms: list[Tensor] = []

    def teach(node: str, x: Tensor) -> Tensor:
        targets[node] = y = modules[node].original(x)
        return y.clone()

    def follow(node: str, x: Tensor) -> Tensor:
        y = modules[node].split(x)
        if powers[node] > 0:
            target = targets.pop(node)
            error = F.mse_loss(y, target, reduction="sum") / (y.numel() / y.shape[1])
            terms.append(error / powers[node])
        return y

    with torch.no_grad():
        run(feeds, teach)
    with torch.enable_grad():
        run(feeds, follow)
        return torch.stack(terms).sum()


def _schedule(index: int, count: int) -> float:
    falling = 0.5 * (1 + math.cos(math.pi * index / count))
    return min(1.0, (index + 1) / (WARM * count)) * (LAST + (1 - LAST) * falling)
