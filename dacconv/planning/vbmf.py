"""Ranks by empirical variational Bayesian matrix factorisation (EVBMF).

Nakajima, Sugiyama, Babacan and Tomioka 2013, "Global analytic solution of fully-observed
variational Bayesian matrix factorization", Journal of Machine Learning Research 14: a matrix is
taken for one of low rank with Gaussian noise. The strength of the noise is estimated, and the
singular values that exceed a threshold which follows from it are kept. Kim et al.,
arXiv 1511.06530, section 3.2, choose the ranks of Tucker splits so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dacconv.decompositions import Method
from dacconv.decompositions.formula import F64, kernel_sizes
from dacconv.graph.types import Choice, Layer
from dacconv.planning.base import Evidence, RankOptions, first_method


def vbmf(
    layers: Sequence[Layer], methods: Sequence[Method], options: RankOptions, evidence: Evidence
) -> list[Choice]:
    """For each layer the rank that its kernel has beyond noise, at least 1.

    Where a method splits several matrices (DAC one per input channel), it is their mean rank.
    """
    choices = []
    for layer in layers:
        method = first_method(layer, methods)
        sizes = kernel_sizes(layer.geometry)
        ranks = []
        spectra = evidence.spectra(layer.name, method.name).spectra()
        for letter, values in zip(method.formula.ranks, spectra, strict=True):
            shape = [math.prod(sizes[c] for c in s) for s in method.formula.unfolding(letter)]
            mean = np.mean([rank_beyond_noise(row, min(shape), max(shape)) for row in values])
            ranks.append(max(1, round(float(mean))))
        choices.append(Choice(layer.name, method.name, tuple(ranks)))
    return choices


def rank_beyond_noise(values: F64, rows: int, columns: int) -> int:
    """The number of singular values of a matrix ``(rows, columns)``, rows <= columns, to keep.

    ``values`` ``(f,)`` are all of its singular values, descending (Nakajima et al., theorem 2 and
    corollary 3; the noise minimises their equation for the free energy).
    """
    from scipy.optimize import minimize_scalar

    squared = np.asarray(values, np.float64) ** 2
    total = float(squared.sum())
    if total <= 0:
        return 0
    squared *= rows * columns / total  # a mean square of 1: the search below is not scale-free
    ratio = rows / columns
    limit = 2.5129 * math.sqrt(ratio)
    edge = (1 + limit) * (1 + ratio / limit)
    count = len(squared)
    tail = min(math.ceil(rows / (1 + ratio)) - 1, count) - 1
    upper = 1.0
    rest = squared[min(tail + 1, count - 1) :]
    lower = min(max(float(rest[0]) / (columns * edge), float(rest.mean()) / columns), upper)
    lower = max(lower, upper * 1e-12)
    noise = upper
    if lower < upper:
        minimum = minimize_scalar(
            lambda variance: (
                _free_energy(squared / (columns * variance), ratio, edge)
                + (rows - count) * math.log(variance)
            ),
            bounds=(lower, upper),
            method="bounded",
            options={"xatol": 1e-9},
        )
        noise = float(minimum.x)
    return int((squared > columns * noise * edge).sum())


def _free_energy(scaled: NDArray[np.float64], ratio: float, edge: float) -> float:
    """The free energy, up to a constant, of squared values over ``columns`` times the noise."""
    scaled = np.maximum(scaled, 1e-300)
    signal, noise = scaled[scaled > edge], scaled[scaled <= edge]
    shifted = signal - (1 + ratio)
    tau = (shifted + np.sqrt(np.maximum(shifted**2 - 4 * ratio, 0))) / 2
    energy = (noise - np.log(noise)).sum() + (signal - tau).sum()
    energy += np.log((tau + 1) / signal).sum() + ratio * np.log(tau / ratio + 1).sum()
    return float(energy)
