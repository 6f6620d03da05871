"""Depthwise and pointwise factors that reproduce a layer's output, not only its kernel.

A conv sees patches ``p`` (``n = in * prod(k)`` numbers, channel by channel) and makes ``K p +
b``. With the second moments of the patches and of the wanted outputs, the mean squared error
of any other kernel is a quadratic form, so that factors are fitted, judged and compared
without touching a sample again. Given the filters, the pointwise weights are a least squares
solution; given the pointwise weights, so are the filters (alternating least squares).

The fit is shrunk towards the original kernel under white inputs (ridge): at infinite strength
it is the plain SVD solution, never zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dacconv.graph.types import Array, FloatArray

F64 = NDArray[np.float64]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge strengths that are tried, as shares of the mean variance of the patches."""

BLOCK = 640
"""Unknowns of one block of the filters' normal equations: the matrix has its square."""

JITTER = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Central moments of patches and wanted outputs.

    ``cov`` is ``(n, n)``, ``cross`` ``(n, out)``, ``power`` the outputs' variances ``(out,)``;
    ``mean_in`` ``(n,)`` and ``mean_out`` ``(out,)``. ``count`` is the number of positions.
    """

    cov: F64
    cross: F64
    power: F64
    mean_in: F64
    mean_out: F64
    count: int


class Accumulator:
    """Sums of products over batches; nothing of the size of the samples is kept."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self._second: F64 = np.zeros((inputs, inputs))
        self._cross: F64 = np.zeros((inputs, outputs))
        self._power: F64 = np.zeros(outputs)
        self._in: F64 = np.zeros(inputs)
        self._out: F64 = np.zeros(outputs)
        self.count = 0

    def add(self, patches: FloatArray, wanted: FloatArray) -> None:
        """Take in ``patches`` ``(m, n)`` and the outputs wanted for them, ``(m, out)``."""
        self._second += patches.T @ patches
        self._cross += patches.T @ wanted
        self._power += np.einsum("mo,mo->o", wanted, wanted, dtype=np.float64)
        self._in += patches.sum(axis=0, dtype=np.float64)
        self._out += wanted.sum(axis=0, dtype=np.float64)
        self.count += len(patches)

    def moments(self) -> Moments:
        """The central moments of everything taken in so far; ValueError where that is nothing."""
        if not self.count:
            raise ValueError("no samples")
        mean_in, mean_out = self._in / self.count, self._out / self.count
        return Moments(
            cov=self._second / self.count - np.outer(mean_in, mean_in),
            cross=self._cross / self.count - np.outer(mean_in, mean_out),
            power=np.maximum(self._power / self.count - mean_out**2, 0.0),
            mean_in=mean_in,
            mean_out=mean_out,
            count=self.count,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Factors of one layer: ``filters`` ``(in, r, q)``, ``pointwise`` ``(out, in, r)``, ``bias``.

    ``q`` numbers describe a filter: its taps, or its coordinates where the patches were
    described by fewer numbers.
    """

    filters: F64
    pointwise: F64
    bias: F64

    @property
    def kernel(self) -> F64:
        """The kernel that the factors make, ``(out, in * q)``."""
        return expand(self.filters, self.pointwise)


def expand(filters: F64, pointwise: F64) -> F64:
    """``(in, r, q)`` and ``(out, in, r)`` as one kernel ``(out, in * q)``."""
    made = np.matmul(pointwise.transpose(1, 0, 2), filters)  # (in, out, q)
    return np.ascontiguousarray(made.transpose(1, 0, 2)).reshape(pointwise.shape[0], -1)


def best_bias(moments: Moments, kernel: F64) -> F64:
    """The bias that leaves no error in the mean."""
    return np.asarray(moments.mean_out - kernel @ moments.mean_in)


def output_error(moments: Moments, kernel: F64, bias: F64, weights: F64 | None = None) -> float:
    """Mean squared error over the wanted outputs' variance, each output times its weight."""
    offset = best_bias(moments, kernel) - bias
    crossed = np.einsum("on,no->o", kernel, moments.cross)
    square = np.einsum("on,on->o", kernel @ moments.cov, kernel)
    errors = np.maximum(moments.power - 2 * crossed + square, 0.0) + offset**2
    scale = np.ones_like(errors) if weights is None else weights
    size = float(scale @ moments.power)
    return float(scale @ errors) / size if size > 0 else 0.0


def shrunk(moments: Moments, kernel: F64, strength: float) -> Moments:
    """The moments with white patches mixed in, for which ``kernel`` makes the wanted outputs."""
    size = len(moments.cov)
    amount = strength * float(np.trace(moments.cov)) / size
    cov = moments.cov.copy()
    cov[np.diag_indices(size)] += amount
    cross = moments.cross + amount * kernel.T
    power = moments.power + amount * np.einsum("on,on->o", kernel, kernel)
    return replace(moments, cov=cov, cross=cross, power=power)


def solve_pointwise(moments: Moments, filters: F64) -> F64:
    """The pointwise weights ``(out, in, r)`` of least error for given filters."""
    channels, rank, _ = filters.shape
    seen = filtered(moments, filters)
    solved = _solve(seen.cov, seen.cross)
    return np.ascontiguousarray(solved.T).reshape(-1, channels, rank)


def filtered(moments: Moments, filters: F64) -> Moments:
    """The moments of what ``filters`` ``(in, r, q)`` make of the patches."""
    channels, rank, taps = filters.shape
    width = channels * rank
    half = np.matmul(filters, moments.cov.reshape(channels, taps, -1)).reshape(width, -1)
    columns = half.reshape(width, channels, taps).transpose(1, 0, 2)
    gram = np.matmul(columns, filters.transpose(0, 2, 1))  # (in, width, r)
    cross = np.matmul(filters, moments.cross.reshape(channels, taps, -1))
    means = np.matmul(filters, moments.mean_in.reshape(channels, taps, 1))
    return replace(
        moments,
        cov=gram.transpose(1, 0, 2).reshape(width, width),
        cross=cross.reshape(width, -1),
        mean_in=means.reshape(width),
    )


def solve_filters(
    moments: Moments, filters: F64, pointwise: F64, weights: F64 | None = None
) -> F64:
    """Filters of no greater error for given pointwise weights.

    All at once where the normal equations have at most ``BLOCK`` unknowns, otherwise block
    after block of input channels, each given the others.
    """
    channels, rank, taps = filters.shape
    step = max(1, BLOCK // (rank * taps))
    filters = filters.copy()
    scale = np.ones(len(pointwise)) if weights is None else weights
    if not scale.any():
        return filters
    whole = expand(filters, pointwise)
    for start in range(0, channels, step):
        block = slice(start, min(start + step, channels))
        rows = slice(block.start * taps, block.stop * taps)
        size = block.stop - block.start
        local = pointwise[:, block].reshape(len(scale), size * rank)
        weighted = local * scale[:, None]
        mixing = (local.T @ weighted).reshape(size, rank, 1, size, rank, 1)
        inner = moments.cov[rows, rows]
        normal = mixing * inner.reshape(size, 1, taps, size, 1, taps)
        normal = normal.reshape(size * rank * taps, -1)
        rest = moments.cross[rows] - moments.cov[rows] @ whole.T + inner @ whole[:, rows].T
        wanted = np.matmul(
            weighted.T.reshape(size, rank, -1), rest.reshape(size, taps, -1).transpose(0, 2, 1)
        )
        filters[block] = _solve(normal, wanted.reshape(-1, 1)).reshape(size, rank, taps)
        whole[:, rows] = expand(filters[block], pointwise[:, block])
    return filters


def fit(
    moments: Moments,
    kernel: F64,
    filters: F64,
    *,
    strength: float,
    sweeps: int = 0,
    weights: F64 | None = None,
) -> Fit:
    """Factors for the wanted outputs, starting from ``filters``, shrunk towards ``kernel``.

    ``sweeps`` alternations improve the filters as well; 0 keeps them.
    """
    mixed = shrunk(moments, kernel, strength)
    pointwise = solve_pointwise(mixed, filters)
    for _ in range(sweeps):
        filters = _unit(solve_filters(mixed, filters, pointwise, weights))
        pointwise = solve_pointwise(mixed, filters)
    return Fit(filters, pointwise, best_bias(moments, expand(filters, pointwise)))


def leading(moments: Moments, channels: int, rank: int) -> Moments:
    """The moments of the first ``rank`` numbers that describe each channel's patch.

    Where patches are described in the basis of the SVD, these are what the filters of the plain
    split let through, so all that concerns these filters is found among so few numbers.
    """
    size, outputs = moments.cross.shape
    numbers = size // channels
    width = channels * min(rank, numbers)
    cov = moments.cov.reshape(channels, numbers, channels, numbers)[:, :rank, :, :rank]
    cross = moments.cross.reshape(channels, numbers, outputs)[:, :rank]
    mean_in = moments.mean_in.reshape(channels, numbers)[:, :rank]
    return replace(
        moments,
        cov=cov.reshape(width, width),
        cross=cross.reshape(width, outputs),
        mean_in=mean_in.reshape(width),
    )


def fit_leading(mixed: Moments, channels: int, rank: int) -> tuple[F64, F64]:
    """Kernel ``(out, in * rank)`` and bias of least error for the filters of the plain split.

    ``mixed`` are moments in the basis of the SVD, :func:`shrunk` already.
    """
    here = leading(mixed, channels, rank)
    kernel = np.ascontiguousarray(_solve(here.cov, here.cross).T)
    return kernel, best_bias(here, kernel)


def best_strength(fitted: Moments, held: Moments, kernel: F64, channels: int, rank: int) -> float:
    """The strength in ``STRENGTHS`` whose fit on one half does best on the held-out half.

    The fit is that of pointwise weights behind the filters of the plain split.
    """
    judge = leading(held, channels, rank)

    def score(strength: float) -> float:
        return output_error(judge, *fit_leading(shrunk(fitted, kernel, strength), channels, rank))

    return min(STRENGTHS, key=score)


def _unit(filters: F64) -> F64:
    """The filters as unit vectors; the pointwise weights that follow take up their size."""
    norms = np.linalg.norm(filters, axis=2, keepdims=True)
    return np.asarray(filters / np.where(norms > 0, norms, 1.0))


def _solve(matrix: F64, wanted: F64) -> Array:
    """Solve normal equations, which may be singular: a trace of ridge makes them regular."""
    size = len(matrix)
    amount = max(float(np.trace(matrix)) / size, np.finfo(np.float64).tiny)
    for jitter in (JITTER, 1e-6, 1e-3):
        regular = matrix + jitter * amount * np.eye(size)
        try:
            solved = np.linalg.solve(regular, wanted)
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(solved).all():
            return np.asarray(solved)
    return np.zeros_like(wanted)
