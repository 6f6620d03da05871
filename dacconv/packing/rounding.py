"""Weights to a few levels, each rounding error made up for by the weights that follow.

The output of a layer changes by ``tr(E H E^T)`` for an error ``E`` ``(out, n)`` of its kernel and
the second moment ``H`` of its input patches. With ``H = R R^T`` and ``R`` upper triangular that is
``|E R|^2``, whose columns depend on the errors of no later column of ``E``. So the columns are
rounded one after the other, and each one first takes in what the ones before it have done to its
column of ``E R``. That is Babai's nearest plane, and what OBC and GPTQ compute by way of the
inverse of ``H`` (Frantar et al. 2022, arXiv 2208.11580 and 2210.17323).

Levels are equally spaced. Entropy-coded, they come within a quarter of a bit of the best possible
code for a given error (Gish and Pierce 1968), which levels placed by k-means do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dacconv.packing.levels import I8, MOST_LEVELS, Levels, nearest_steps, scales
from dacconv.support.threads import one_blas_thread

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

BLOCK = 64
"""Columns after which the errors so far are carried over to all that follow."""
DAMPING = (0.01, 0.1, 1.0)
"""Shares of the mean second moment that are added to all, for directions that no input had; the
first with which the matrix can be factored is taken."""


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """What an error of a kernel does to the output of its layer.

    ``factors`` ``(groups, n, n)`` are upper triangular, for the columns in the order ``orders``
    ``(groups, n)``; of a layer without groups there is one. ``power`` is the output's own size.
    """

    factors: F32
    orders: NDArray[np.intp]
    power: float

    @property
    def weight(self) -> float:
        """The mean damage of an error of 1 in one number, when later columns make up for it."""
        diagonals = np.einsum("gii->gi", self.factors).astype(np.float64)
        return float((diagonals**2).mean())


def metric_of(second: F64, kernel: F64) -> Metric | None:
    """The metric of a layer; None where its inputs were not finite.

    Args:
        second: the second moments of the patches, ``(groups, n, n)``.
        kernel: the kernel ``(out, n)``, for the output's size.
    """
    groups, n, _ = second.shape
    factors = np.empty((groups, n, n), np.float32)
    orders = np.empty((groups, n), np.intp)
    power = 0.0
    for g, (moment, rows) in enumerate(zip(second, np.split(kernel, groups), strict=True)):
        power += float(np.einsum("on,on->", rows @ moment, rows))
        order = np.argsort(-np.diag(moment), kind="stable")
        factor = _upper_factor(moment[np.ix_(order, order)])
        if factor is None:
            return None
        factors[g], orders[g] = factor, order
    return Metric(factors, orders, power)


def _upper_factor(moment: F64) -> F64 | None:
    """The upper triangular ``R`` with ``R R^T`` equal to a damped second moment."""
    n = len(moment)
    mean = max(float(np.trace(moment)) / n, 1e-30)
    if not np.isfinite(moment).all():
        return None
    for share in DAMPING:
        damped = moment.copy()
        damped[np.diag_indices(n)] += share * mean
        try:  # the Cholesky factor of the reversed matrix, reversed, is upper triangular
            with one_blas_thread():
                return np.asarray(np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1])
        except np.linalg.LinAlgError:
            continue
    return None


def rounded(kernel: F64, metric: Metric | None, step: float, gains: F64, most: int) -> Levels:
    """The kernel on at most ``most`` levels.

    Args:
        kernel: ``(out, n)``.
        metric: what errors do to the output; None rounds every number to its nearest level.
        step: the distance of the levels, before the gains.
        gains: for each row, what its output is multiplied with later on: a row of twice the gain
            has half the step.
        most: the largest number of levels, an odd number from 3.
    """
    steps: I8 = nearest_steps(1 / np.where(gains > 0, gains, 1.0))
    half = min(most, MOST_LEVELS - 1) // 2
    step = float(np.float32(step))
    scaled = kernel / (step * scales(steps).astype(np.float64)[:, None])
    if metric is None:
        whole = np.clip(np.rint(scaled), -half, half)
    else:
        groups = len(metric.factors)
        parts = zip(np.split(scaled, groups), metric.factors, metric.orders, strict=True)
        whole = np.concatenate([_nearest_plane(*part, half) for part in parts])
    indices = whole.astype(np.int32)
    low, high = int(indices.min(initial=0)), int(indices.max(initial=0))
    multiples = np.arange(low, high + 1, dtype=np.int32)
    return Levels(indices - low, step, multiples, steps, np.zeros(1, np.int8))


def damage(kernel: F64, values: F64, metric: Metric) -> float:
    """What rounding did to the output of a layer, relative to the output's own size."""
    total = 0.0
    errors = np.split(kernel - values, len(metric.factors))
    for error, factor, order in zip(errors, metric.factors, metric.orders, strict=True):
        total += float(((error[:, order].astype(np.float32) @ factor) ** 2).sum(dtype=np.float64))
    return total / metric.power if metric.power > 0 else 0.0


def bits_of(indices: NDArray[np.int32]) -> float:
    """The entropy of the indices of a tensor, in bits."""
    counts = np.bincount(indices.ravel())
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / indices.size)).sum())


def _nearest_plane(
    scaled: F64, factor: F32, order: NDArray[np.intp], half: int
) -> NDArray[np.float32]:
    """Whole numbers for the rows of one group, in units of their steps."""
    rows, n = scaled.shape
    values = scaled[:, order].astype(np.float32)
    whole = np.empty((rows, n), np.float32)
    errors = np.zeros((rows, n), np.float32)
    for start in range(0, n, BLOCK):
        end = min(start + BLOCK, n)
        carried = errors[:, :start] @ factor[:start, start:end]
        for j in range(start, end):
            before = carried[:, j - start] + errors[:, start:j] @ factor[start:j, j]
            column = np.rint(values[:, j] + before / factor[j, j])
            whole[:, j] = np.clip(column, -half, half)
            errors[:, j] = values[:, j] - whole[:, j]
    result = np.empty_like(whole)
    result[:, order] = whole
    return result
