"""Factors that reproduce a layer's output, not only its kernel, for any formula.

The kernel that factors make is linear in each of them given the others, so that the mean squared
output error is minimised factor by factor (alternating least squares), starting from the plain
split. The fit is shrunk towards the original kernel under white inputs (ridge): at infinite
strength it is the plain split, never zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dacconv.calibration.moments import F64, Moments, best_bias, output_error, shrink, solve
from dacconv.decompositions import Factors, Formula
from dacconv.decompositions.formula import KERNEL

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge strengths that are tried, as shares of the mean variance of the patches."""

Indices = np.ndarray[tuple[int], np.dtype[np.intp]]

STEPS = 12
"""Steps of conjugate gradients for a factor whose normal equations are too large to be solved."""


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Factors of one layer, as its formula has them, and the bias ``(out,)``."""

    factors: Factors
    bias: F64


def kernel_matrix(formula: Formula, factors: Factors) -> F64:
    """The kernel that the factors of an ungrouped conv make, ``(out, in * taps)``."""
    kernel = formula.recompose(factors)
    return kernel.reshape(kernel.shape[1], -1)


@dataclass(frozen=True, slots=True, eq=False)
class Regressors:
    """The numbers that the carrier weighs: patches seen through the other factors.

    ``moments`` are theirs, in the order of the carrier's letters without ``o``. ``gram`` and
    ``own`` are what white patches of variance 1 add to ``cov`` and ``cross`` where ``kernel``
    gives the outputs; ``scale`` is the mean variance of the patches.
    """

    moments: Moments
    gram: F64
    own: F64
    scale: float

    def shrunk(self, strength: float) -> Moments:
        """The moments with white patches mixed in; see ``moments.shrink``."""
        amount = strength * self.scale
        cov, cross = self.moments.cov + amount * self.gram, self.moments.cross + amount * self.own
        return replace(self.moments, cov=cov, cross=cross)

    def part(self, columns: Indices) -> Regressors:
        """Some of the numbers alone."""
        square = np.ix_(columns, columns)
        moments = replace(
            self.moments,
            cov=self.moments.cov[square],
            cross=self.moments.cross[columns],
            mean_in=self.moments.mean_in[columns],
        )
        return replace(self, moments=moments, gram=self.gram[square], own=self.own[columns])


def regressors(formula: Formula, moments: Moments, kernel: F64, factors: Factors) -> Regressors:
    """The numbers that the carrier weighs, for given other factors."""
    see = patch_map(formula, factors)
    size = len(moments.cov)
    half = see(moments.cov)
    seen = replace(
        moments,
        cov=see(np.ascontiguousarray(half.T)),
        cross=see(moments.cross),
        mean_in=see(moments.mean_in[:, None])[:, 0],
    )
    gram = see(np.ascontiguousarray(see(np.eye(size)).T))
    scale = float(np.trace(moments.cov)) / size
    return Regressors(seen, gram, see(np.ascontiguousarray(kernel.T)), scale)


def patch_map(formula: Formula, factors: Factors) -> Callable[[F64], F64]:
    """The linear map from patches to the numbers that the carrier weighs.

    It maps arrays ``(in * taps, k)`` to ``(numbers, k)``. Kernel letters of the carrier are not
    summed over, so that it is a product for each of their values.
    """
    carrier = formula.terms[formula.carrier]
    inner = [c for c in carrier if c != "o"]
    ranks = [c for c in inner if c not in KERNEL]
    kept = [c for c in inner if c in KERNEL]
    summed = [c for c in "iyx" if c not in kept]
    rest = [(t, f) for i, (t, f) in enumerate(zip(formula.terms, factors, strict=True))
            if i != formula.carrier]  # fmt: skip
    sizes = {c: n for t, f in rest for c, n in zip(t, f.shape[1:], strict=True)}
    sizes |= dict(zip(carrier, factors[formula.carrier].shape[1:], strict=True))
    own = [c for c in kept if any(c in term for term, _ in rest)]
    letters = "".join((*own, *ranks, *summed))
    text = ",".join(f"g{term}" for term, _ in rest)
    product = np.einsum(f"{text}->{letters}", *(f for _, f in rest), optimize=len(rest) > 1)
    shape = [sizes[c] if c in own else 1 for c in kept]
    count = math.prod(sizes[c] for c in summed)
    weights = np.asarray(product, np.float64).reshape(*shape, -1, count)
    order = [kept.index(c) if c in kept else len(kept) + ranks.index(c) for c in inner]

    def see(values: F64) -> F64:
        columns = values.shape[1]
        spread = values.reshape(*(sizes[c] for c in "iyx"), columns)
        spread = spread.transpose(["iyx".index(c) for c in (*kept, *summed)] + [3])
        spread = spread.reshape(*(sizes[c] for c in kept), count, columns)
        seen = np.matmul(weights, spread)
        seen = seen.reshape(*(sizes[c] for c in (*kept, *ranks)), columns)
        return np.ascontiguousarray(seen.transpose([*order, len(order)])).reshape(-1, columns)

    return see


def solve_carrier(formula: Formula, seen: Moments, factors: Factors) -> Factors:
    """The factors with the carrier of least error for the numbers that it weighs."""
    return with_carrier(formula, factors, solve(seen.cov, seen.cross).T)


def with_carrier(formula: Formula, factors: Factors, weights: F64) -> Factors:
    """The factors with a carrier ``(out, numbers)`` in the order of :func:`patch_map`."""
    index = formula.carrier
    term = formula.terms[index]
    sizes = dict(zip(term, factors[index].shape[1:], strict=True))
    inner = [c for c in term if c != "o"]
    array = weights.reshape(-1, *(sizes[c] for c in inner))
    order = [("o", *inner).index(c) for c in term]
    carrier = np.ascontiguousarray(array.transpose(order))[None]
    return *factors[:index], carrier, *factors[index + 1 :]


def solve_factor(formula: Formula, moments: Moments, factors: Factors, index: int) -> Factors:
    """The factors with one of them improved by conjugate gradients, the others kept."""
    from scipy.sparse.linalg import LinearOperator, cg

    shape, out = factors[index].shape, len(moments.power)
    term = formula.terms[index]
    others = [f"g{t}" for i, t in enumerate(formula.terms) if i != index]
    arrays = [f for i, f in enumerate(factors) if i != index]
    kernel_shape = formula.recompose(factors).shape

    def kernel(values: F64) -> F64:
        changed = (*factors[:index], values.reshape(shape), *factors[index + 1 :])
        return kernel_matrix(formula, changed)

    def back(gradient: F64) -> F64:
        text = f"g{KERNEL},{','.join(others)}->g{term}"
        gradient = gradient.reshape(kernel_shape)
        return np.asarray(np.einsum(text, gradient, *arrays, optimize=True)).ravel()

    size = math.prod(shape)
    normal = LinearOperator(
        (size, size), matvec=lambda v: back(kernel(v) @ moments.cov), dtype=np.float64
    )
    right = back(np.ascontiguousarray(moments.cross.T).reshape(out, -1))
    start = np.asarray(factors[index], np.float64).ravel()
    solution, _ = cg(normal, right, x0=start, rtol=1e-8, maxiter=STEPS)
    return *factors[:index], solution.reshape(shape), *factors[index + 1 :]


def fit(
    formula: Formula, moments: Moments, kernel: F64, start: Factors, *, strength: float, sweeps: int
) -> Fit:
    """Factors for the target outputs, starting from ``start``, shrunk towards ``kernel``.

    ``sweeps`` alternations improve all factors; with 0 only the carrier is solved.
    """
    mixed = shrink(moments, kernel, strength)
    seen = regressors(formula, moments, kernel, start).shrunk(strength)
    factors = solve_carrier(formula, seen, start)
    for _ in range(sweeps):
        for index in range(len(formula.terms)):
            if index != formula.carrier:
                factors = unit(formula, solve_factor(formula, mixed, factors, index), index)
        seen = regressors(formula, moments, kernel, factors).shrunk(strength)
        factors = solve_carrier(formula, seen, factors)
    return Fit(factors, best_bias(moments, kernel_matrix(formula, factors)))


def unit(formula: Formula, factors: Factors, index: int) -> Factors:
    """One factor with vectors of length 1 for each rank; the carrier takes up their length.

    Balanced so, one rate of descent suits every component.
    """
    term = formula.terms[index]
    axes = tuple(1 + i for i, c in enumerate(term) if c in KERNEL and c not in formula.shared)
    norms = np.linalg.norm(factors[index], axis=axes, keepdims=True)
    scaled = factors[index] / np.where(norms > 0, norms, 1.0)
    return *factors[:index], scaled, *factors[index + 1 :]


def best_strength(fitted: Regressors, held: Regressors) -> float:
    """The strength in ``STRENGTHS`` whose fit on one half does best on the held-out half.

    The fit is that of the carrier alone.
    """

    def score(strength: float) -> float:
        seen = fitted.shrunk(strength)
        weights = solve(seen.cov, seen.cross).T
        return output_error(held.moments, weights, best_bias(seen, weights))

    return min(STRENGTHS, key=score)


def nested_fits(
    formula: Formula, fitted: Moments, held: Moments, kernel: F64, plain: Sequence[Fit]
) -> list[tuple[Fit, float]]:
    """For plain splits of several ranks, the better of it and its fit, with its held-out error.

    The factors of a smaller rank are the first components of those of a larger one, so that
    their normal equations are parts of those of the largest.
    """
    most = max(plain, key=lambda each: each.factors[formula.carrier].size)
    seen = regressors(formula, fitted, kernel, most.factors)
    judge = regressors(formula, held, kernel, most.factors)
    middle = _leading(formula, plain[len(plain) // 2].factors, most.factors)
    strength = best_strength(seen.part(middle), judge.part(middle))
    results = []
    for each in plain:
        columns = _leading(formula, each.factors, most.factors)
        own, judged = seen.part(columns).shrunk(strength), judge.part(columns).moments
        weights = solve(own.cov, own.cross).T
        bias = best_bias(own, weights)
        error = output_error(judged, weights, bias)
        before = output_error(judged, _carrier_matrix(formula, each.factors), each.bias)
        better = Fit(with_carrier(formula, each.factors, weights), bias)
        results.append((better, error) if error < before else (each, before))
    return results


def _leading(formula: Formula, factors: Factors, most: Factors) -> Indices:
    """Which numbers of the largest split are those of a smaller one."""
    carrier = formula.terms[formula.carrier]
    axes = [axis for axis, c in enumerate(carrier, start=1) if c != "o"]
    large = [most[formula.carrier].shape[axis] for axis in axes]
    small = tuple(slice(0, factors[formula.carrier].shape[axis]) for axis in axes)
    return np.arange(math.prod(large)).reshape(large)[small].ravel()


def _carrier_matrix(formula: Formula, factors: Factors) -> F64:
    """The carrier as ``(out, numbers)``, in the order of :func:`patch_map`."""
    term = formula.terms[formula.carrier]
    order = [term.index("o"), *(i for i, c in enumerate(term) if c != "o")]
    array = np.asarray(factors[formula.carrier][0], np.float64).transpose(order)
    return np.ascontiguousarray(array).reshape(len(array), -1)
