"""Second moments of a layer's patches and outputs: all that a fit of its kernel needs.

A conv computes ``K p + b`` of patches ``p`` (``n = in * taps`` numbers, channel by channel). With
the second moments of the patches and of the outputs that it should have, the mean squared error
of any other kernel is a quadratic form, so that factors are fitted, judged and compared without
touching a sample again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dacconv.graph.types import FloatArray
from dacconv.support.threads import one_blas_thread

F64 = NDArray[np.float64]

JITTERS = (1e-9, 1e-6, 1e-3)
"""Shares of the mean variance that are added to normal equations until they can be solved."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Central moments of patches and target outputs.

    ``cov`` is ``(n, n)``, ``cross`` ``(n, out)``, ``power`` the outputs' variances ``(out,)``;
    ``mean_in`` ``(n,)`` and ``mean_out`` ``(out,)``. ``count`` is the number of positions.
    """

    cov: F64
    cross: F64
    power: F64
    mean_in: F64
    mean_out: F64
    count: float


class Accumulator:
    """Sums of products over batches; nothing of the size of the samples is kept."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self._second: F64 = np.zeros((inputs, inputs))
        self._cross: F64 = np.zeros((inputs, outputs))
        self._power: F64 = np.zeros(outputs)
        self._in: F64 = np.zeros(inputs)
        self._out: F64 = np.zeros(outputs)
        self.count: float = 0

    def add(self, patches: FloatArray, outputs: FloatArray) -> None:
        """Add ``patches`` ``(m, n)`` and the target outputs for them, ``(m, out)``."""
        self._second += patches.T @ patches
        self._cross += patches.T @ outputs
        self._power += np.einsum("mo,mo->o", outputs, outputs, dtype=np.float64)
        self._in += patches.sum(axis=0, dtype=np.float64)
        self._out += outputs.sum(axis=0, dtype=np.float64)
        self.count += len(patches)

    def like(self) -> Accumulator:
        """An empty accumulator for patches and outputs of the same sizes."""
        return Accumulator(len(self._in), len(self._out))

    def add_scaled(self, other: Accumulator, weight: float) -> None:
        """Add what another accumulator holds as one sample of mean moments, times ``weight``."""
        factor = weight / other.count
        for mine, sums in zip(self._sums, other._sums, strict=True):
            mine += factor * sums
        self.count += weight

    @property
    def _sums(self) -> tuple[F64, ...]:
        return self._second, self._cross, self._power, self._in, self._out

    def moments(self) -> Moments:
        """The central moments of everything that was added; ValueError where that is nothing."""
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


def pooled(parts: Sequence[Accumulator]) -> Moments:
    """The moments of several families that count alike, whatever their scale.

    Each is weighted by the inverse of its outputs' variance, so that the error of a kernel is
    about the mean of its relative errors on the families.
    """
    if len(parts) == 1:
        return parts[0].moments()
    total = parts[0].like()
    for part in parts:
        total.add_scaled(part, 1 / max(float(part.moments().power.sum()), 1e-30))
    return total.moments()


def best_bias(moments: Moments, kernel: F64) -> F64:
    """The bias that leaves no error in the mean."""
    return np.asarray(moments.mean_out - kernel @ moments.mean_in)


def output_error(moments: Moments, kernel: F64, bias: F64) -> float:
    """Mean squared error of a kernel ``(out, n)`` and bias over the target outputs' variance."""
    offset = best_bias(moments, kernel) - bias
    crossed = np.einsum("on,no->o", kernel, moments.cross)
    square = np.einsum("on,on->o", kernel @ moments.cov, kernel)
    errors = np.maximum(moments.power - 2 * crossed + square, 0.0) + offset**2
    size = float(moments.power.sum())
    return float(errors.sum()) / size if size > 0 else 0.0


def shrink(moments: Moments, kernel: F64, strength: float) -> Moments:
    """The moments with white patches mixed in, for which ``kernel`` gives the target outputs.

    ``strength`` is a share of the mean variance of the patches (a ridge towards the kernel).
    """
    size = len(moments.cov)
    amount = strength * float(np.trace(moments.cov)) / size
    cov = moments.cov.copy()
    cov[np.diag_indices(size)] += amount
    cross = moments.cross + amount * kernel.T
    power = moments.power + amount * np.einsum("on,on->o", kernel, kernel)
    return replace(moments, cov=cov, cross=cross, power=power)


def solve(matrix: F64, right: F64) -> F64:
    """Solve normal equations, which may be singular: a trace of ridge makes them regular."""
    import scipy.linalg

    size = len(matrix)
    amount = max(float(np.trace(matrix)) / size, np.finfo(np.float64).tiny)
    for jitter in JITTERS:
        regular = matrix.copy()
        regular[np.diag_indices(size)] += jitter * amount
        try:
            with one_blas_thread():
                factor = scipy.linalg.cho_factor(regular, overwrite_a=True, check_finite=False)
                solution = scipy.linalg.cho_solve(factor, right, check_finite=False)
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(solution).all():
            return np.asarray(solution)
    return np.zeros_like(right)
