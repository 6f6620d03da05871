"""The price of a chain of convs in a runtime: a model with few constants.

ONNX Runtime and torch (oneDNN) compute a conv in one of three ways, here called paths:

- *direct*: kernels that work on channels in blocks of 16. Channels are filled up to whole blocks.
- *depthwise*: kernels for one filter per channel, in the same blocks.
- *generic*: every other conv. The values under each position of the kernel are gathered into the
  columns of a matrix, group by group, and matrices are multiplied (im2col and GEMM).

The time of a conv is ``sqrt(compute ** 2 + move ** 2) + reorder + call``: a smooth maximum of the
time of its multiply-adds on its path and the time of moving its input, weights and output, then
the time to reorder values between the runtime's layouts, and a constant. The constants are fitted
to measurements by ``scripts/fit_prices.py``; docs/forms.md has the errors on layers that were left
out of the fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Literal

from dacconv.decompositions.costs import Work, split_work
from dacconv.graph.cost import layer_cost
from dacconv.graph.types import Choice, Geometry, Layer
from dacconv.timing.speeds import ONNXRUNTIME, TORCH, TORCH_NN, Target

BLOCK, ALIGNED = 16, 4
"""Channels per block of the direct path: a vector of AVX-512 in float32; and what the number of
channels must be a multiple of in ONNX Runtime for its values to stay in blocks."""

TYPICAL_SIZE = 28
"""The side of an output whose size the model does not tell."""

Path = Literal["direct", "depthwise", "generic"]


@dataclass(frozen=True, slots=True)
class Kernels:
    """The kernels of a runtime.

    ``direct_axes`` are the numbers of spatial axes that the direct and depthwise paths take.
    ``blocked`` says that values stay in blocks between operators, so that the generic path
    reorders them; else they are plain, and the other paths reorder them. ``fuses_additions``: a
    sum of branches is added up within the convs. ``small`` is the number of input values up to
    which an ungrouped conv of batch 1 takes the generic path at the cost of an ordinary operator.
    """

    direct_axes: tuple[int, ...]
    blocked: bool
    fuses_additions: bool
    small: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """The constants of a runtime on one machine, fitted to measured convs.

    Of one thread: ``direct``, ``depthwise`` and ``generic`` are multiply-adds per second,
    ``gathered`` the values per second that the generic path copies into columns and ``group`` its
    seconds per group. ``cached``, ``memory``, ``reordered`` and ``copied`` are bytes per second:
    those of convs within the cache and outside it, those between layouts, and those of operators
    that copy. ``cache`` is how many bytes of a conv count as cached. ``conv`` and ``operator`` are
    seconds per conv and per other operator.

    With N threads ``N ** compute_scaling`` times as many multiply-adds are done per second, and
    ``N ** memory_scaling`` times as many bytes moved; every call takes ``waking`` seconds longer
    for each further thread.
    """

    direct: float
    depthwise: float
    generic: float
    gathered: float
    group: float
    cached: float
    memory: float
    cache: float
    reordered: float
    copied: float
    conv: float
    operator: float
    waking: float
    compute_scaling: float
    memory_scaling: float


@dataclass(frozen=True, slots=True)
class Prices:
    """The seconds of convs in one runtime."""

    kernels: Kernels
    rates: Rates

    def seconds(self, work: Work, threads: int) -> float:
        """The seconds of one run, with so many threads.

        Raises:
            ValueError: the size of an input or output is not known.
        """
        rates = self.rates
        convs = sum(self.conv_seconds(geometry, threads) for geometry in work.convs)
        itemsize = work.convs[0].itemsize
        copied, added = (work.copied or 0) * itemsize, (work.added or 0) * itemsize
        others = work.copies + work.additions
        if self.kernels.fuses_additions:  # of two reads and a write, one read is left
            added, others = added // 3, work.copies
        moving = copied / rates.copied / threads**rates.memory_scaling
        moving += self._moving(added, threads)
        call = rates.operator + rates.waking * (threads - 1)
        return float(convs + moving + others * call)

    def conv_seconds(self, geometry: Geometry, threads: int) -> float:
        """The seconds of a single conv."""
        rates = self.rates
        counts = _counts(geometry, self.kernels)
        compute = counts.macs / getattr(rates, counts.path)
        compute += counts.gathered / rates.gathered + counts.groups * rates.group
        compute /= threads**rates.compute_scaling
        moving = self._moving(counts.moved, threads)
        reordering = counts.reordered / rates.reordered / threads**rates.memory_scaling
        call = (rates.operator if counts.small else rates.conv) + rates.waking * (threads - 1)
        return float(math.hypot(compute, moving) + reordering + call)

    def _moving(self, size: float, threads: int) -> float:
        """The seconds in which so many bytes are read and written."""
        rates = self.rates
        outside = max(0.0, size - rates.cache)
        seconds = (size - outside) / rates.cached + outside / rates.memory
        return float(seconds / threads**rates.memory_scaling)


@dataclass(frozen=True, slots=True)
class _Counts:
    """The operations and bytes of a conv on its path; see ``Rates`` for the units."""

    path: Path
    macs: float
    gathered: int
    groups: int
    moved: int
    reordered: int
    small: bool


def _path(g: Geometry, kernels: Kernels) -> Path:
    inputs, outputs = g.in_channels // g.groups, g.out_channels // g.groups
    if len(g.kernel) not in kernels.direct_axes or _is_small(g, kernels):
        return "generic"
    aligned = not kernels.blocked or g.in_channels % ALIGNED == 0
    if g.groups == 1:
        return "direct" if aligned or g.in_channels < BLOCK else "generic"
    if inputs == outputs == 1:
        return "depthwise" if aligned else "generic"
    return "direct" if inputs % BLOCK == 0 and outputs % BLOCK == 0 else "generic"


def _is_small(g: Geometry, kernels: Kernels) -> bool:
    values = g.batch * g.in_channels * math.prod(g.input_size or ())
    is_plain = g.groups == g.batch == 1 and min(g.kernel, default=1) <= 3
    return is_plain and values <= kernels.small


@lru_cache(maxsize=4096)
def _counts(g: Geometry, kernels: Kernels) -> _Counts:
    cost = layer_cost(g)
    if cost.macs is None or cost.traffic is None:
        raise ValueError("the sizes of the conv are not known")
    path, small = _path(g, kernels), _is_small(g, kernels)
    positions = g.batch * math.prod(g.output_size or ())
    macs, gathered, groups, reordered = float(cost.macs), 0, 0, 0
    if path == "generic":
        groups = g.batch * g.groups
        if math.prod(g.kernel) * math.prod(g.stride) > 1:
            gathered = positions * g.in_channels * math.prod(g.kernel)
        if kernels.blocked and len(g.kernel) in kernels.direct_axes:
            reordered = cost.traffic
    else:
        inputs, outputs = g.in_channels // g.groups, g.out_channels // g.groups
        if path == "depthwise":
            macs *= _filled(g.groups)
        else:
            macs *= _filled(outputs) * (_filled(inputs) if inputs >= BLOCK else 1)
        if not kernels.blocked:
            reordered = cost.traffic
    return _Counts(path, macs, gathered, groups, cost.traffic, reordered, small)


def _filled(channels: int) -> float:
    """The channels of whole blocks over the channels that there are."""
    return math.ceil(channels / BLOCK) * BLOCK / channels


_TORCH_KERNELS = Kernels(direct_axes=(1, 2, 3), blocked=False, fuses_additions=False, small=20480)
# Fitted by scripts/fit_prices.py to ONNX Runtime 1.31.1 and torch 2.13.0 on an AMD EPYC (Zen 4,
# AVX-512) with one and two threads, 2026-11-25.
_ONNXRUNTIME_RATES = Rates(
    direct=59.3e9,
    depthwise=53.0e9,
    generic=58.0e9,
    gathered=4.03e9,
    group=0.152e-6,
    cached=87.2e9,
    memory=13.7e9,
    cache=8.59e6,
    reordered=22.1e9,
    copied=43.4e9,
    conv=0.898e-6,
    operator=0.162e-6,
    waking=1.34e-6,
    compute_scaling=0.969,
    memory_scaling=0.166,
)
_TORCH_RATES = Rates(
    direct=58.9e9,
    depthwise=54.0e9,
    generic=38.0e9,
    gathered=1.67e9,
    group=0.446e-6,
    cached=55.3e9,
    memory=7.49e9,
    cache=8.39e6,
    reordered=21.2e9,
    copied=16.8e9,
    conv=50.7e-6,
    operator=7.58e-6,
    waking=18.3e-6,
    compute_scaling=0.880,
    memory_scaling=0.001,
)
PRICES: Mapping[str, Prices] = {
    ONNXRUNTIME: Prices(Kernels((2,), blocked=True, fuses_additions=True), _ONNXRUNTIME_RATES),
    TORCH: Prices(_TORCH_KERNELS, _TORCH_RATES),
    TORCH_NN: Prices(_TORCH_KERNELS, replace(_TORCH_RATES, copied=8.27e9, operator=9.11e-6)),
}


@dataclass(frozen=True, slots=True)
class PredictedSpeeds:
    """Times over the conv's as the model predicts them, for a target on the CPU."""

    target: Target
    measured: ClassVar[bool] = False

    def __call__(self, layer: Layer, choice: Choice, forms: Sequence[str]) -> Mapping[str, float]:
        """See :class:`~dacconv.timing.speeds.Speeds`. There is no prediction for a GPU."""
        if self.target.device != "cpu":
            return {}
        prices, threads = PRICES[self.target.runtime], self.target.threads
        geometry = _sized(layer.geometry)
        before = prices.conv_seconds(geometry, threads)
        works = {form: split_work(geometry, choice.method, choice.rank, form) for form in forms}
        return {form: prices.seconds(work, threads) / before for form, work in works.items()}


def _sized(geometry: Geometry) -> Geometry:
    """The geometry, with an output of typical size where the model does not tell it."""
    if geometry.input_size is not None and geometry.output_size is not None:
        return geometry
    size = (TYPICAL_SIZE,) * len(geometry.kernel)
    source = tuple(TYPICAL_SIZE * stride for stride in geometry.stride)
    return replace(geometry, input_size=source, output_size=size)
