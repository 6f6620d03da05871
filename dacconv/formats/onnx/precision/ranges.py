"""The ranges of activations: histograms of what was observed, and the limits taken from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dacconv.formats.base import Feeds, Runner
from dacconv.formats.inputs import batch_of
from dacconv.graph.types import Array, FloatArray

BINS = 4096
LEVELS = 255
"""The steps of an 8-bit number."""
TAIL = 1e-4
"""The share of the values that ``percentile`` leaves outside the range."""
MOST_BYTES = 2**28
"""The bytes of the activations of one run, approximately, where a batch can be divided."""
CLIPS = np.linspace(1.0, 0.3, 15)
"""The parts of the observed range that ``mse`` tries."""


@dataclass(slots=True, eq=False)
class Histogram:
    """How often values of an activation occur, in bins of equal width within ``-limit..limit``.

    ``limit`` is a power of two. Where a larger value comes, it is doubled and bins are joined in
    pairs, so that one pass over the inputs is enough and no activation is kept.
    """

    limit: float = 0.0
    low: float = 0.0
    high: float = 0.0
    counts: FloatArray = field(default_factory=lambda: np.zeros(BINS))

    def add(self, values: Array) -> None:
        """Count the values; those that are not finite are left out."""
        flat = values.reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            flat = flat[np.isfinite(flat)]
            if not flat.size:
                return
            low, high = float(flat.min()), float(flat.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-low, high))
        if self.limit:
            scale = np.float32(BINS / 2 / self.limit)
            at = (flat.astype(np.float32, copy=False) * scale).astype(np.int32)
            at += BINS // 2
            at -= flat < 0
            np.clip(at, 0, BINS - 1, out=at)
            self.counts += np.bincount(at, minlength=BINS)

    def _widen(self, largest: float) -> None:
        if largest <= self.limit:
            return
        limit = 2.0 ** math.ceil(math.log2(max(largest, 1e-30)))
        while self.limit and self.limit < limit:
            quarter, half = BINS // 4, BINS // 2
            joined = self.counts[::2] + self.counts[1::2]
            self.counts = np.zeros(BINS)
            self.counts[quarter : quarter + half] = joined
            self.limit *= 2
        self.limit = limit

    def range(self, method: str, *, symmetric: bool = False) -> tuple[float, float]:
        """The range to quantise; it contains zero. ``method`` is one of ``RANGES``."""
        low, high = self.low, self.high
        if method == "percentile":
            low, high = self._percentile()
        elif method == "mse":
            low, high = self._least_squares(symmetric=symmetric)
        if symmetric:
            high = max(-low, high)
            low = -high
        return min(low, 0.0), max(high, 0.0)

    def _edges(self) -> FloatArray:
        return np.linspace(-self.limit, self.limit, BINS + 1)

    def _percentile(self) -> tuple[float, float]:
        total = self.counts.sum()
        if not total:
            return self.low, self.high
        share, edges = np.cumsum(self.counts) / total, self._edges()
        low = edges[int(np.searchsorted(share, TAIL / 2))]
        high = edges[min(int(np.searchsorted(share, 1 - TAIL / 2)) + 1, BINS)]
        return max(self.low, float(low)), min(self.high, float(high))

    def _least_squares(self, *, symmetric: bool) -> tuple[float, float]:
        """The range whose steps and clipping cost the least squared error."""
        edges = self._edges()
        used = self.counts > 0
        centres, counts = ((edges[1:] + edges[:-1]) / 2)[used], self.counts[used]
        best, least = (self.low, self.high), math.inf
        lows = CLIPS if self.low < 0 and not symmetric else CLIPS[:1]
        for high_share in CLIPS:
            for low_share in lows:
                low, high = low_share * self.low, high_share * self.high
                if symmetric:
                    high = high_share * max(-self.low, self.high)
                    low = -high
                step = (high - low) / LEVELS
                clipped = np.clip(centres, low, high) - centres
                rounding = (
                    step * step / 12 * ((centres >= low) & (centres <= high) & (centres != 0))
                )
                error = float(counts @ (clipped * clipped + rounding))
                if error < least:
                    best, least = (low, high), error
        return best


def observe(
    run: Runner, names: Sequence[str], batches: Iterable[Feeds], *, divisible: bool
) -> tuple[dict[str, Histogram], dict[str, FloatArray]]:
    """Histograms of the values ``names`` of a model that returns them, and their channel means.

    ``divisible``: the model takes any number of samples, so that a run can be kept small.
    """
    histograms = {name: Histogram() for name in names}
    sums: dict[str, FloatArray] = {}
    count, chunk = 0, 1
    for feeds in batches:
        for part in divided(feeds, chunk) if divisible else (feeds,):
            values = run(part)
            size = sum(values[name].nbytes for name in names)
            chunk = max(1, MOST_BYTES * batch_of(part) // max(size, 1))
            count += 1
            for name in names:
                value = values[name]
                if value.dtype == np.float32:
                    histograms[name].add(value)
                    if value.ndim > 1:
                        axes = (0, *range(2, value.ndim))
                        mean = value.mean(axes, dtype=np.float64)
                        sums[name] = sums[name] + mean if name in sums else mean
    return histograms, {name: total / max(count, 1) for name, total in sums.items()}


def divided(feeds: Feeds, most: int) -> Iterable[Feeds]:
    """The feeds in parts of at most ``most`` samples, where all inputs have the same batch."""
    sizes = {array.shape[0] if array.ndim else 1 for array in feeds.values()}
    batch = batch_of(feeds)
    if len(sizes) != 1 or batch <= most:
        return [feeds]
    starts = range(0, batch, most)
    return [{n: a[i : i + most] for n, a in feeds.items()} for i in starts]


def all_ranges(
    histograms: Mapping[str, Histogram], method: str, *, symmetric: bool
) -> dict[str, tuple[float, float]]:
    """The range of every activation."""
    return {n: h.range(method, symmetric=symmetric) for n, h in histograms.items()}
