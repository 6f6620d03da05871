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
from dacconv.support.threads import one_blas_thread

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge strengths that are tried, as shares of the mean variance of the patches."""

WIDE = 1500
"""Numbers of a patch above which a layer is wide: its fits take seconds, and fewer steps."""

Indices = np.ndarray[tuple[int], np.dtype[np.intp]]

STEPS, WIDE_STEPS = 12, 3
"""Steps of conjugate gradients for a factor whose normal equations are too large to be solved."""
MOST_WORK = 5 * 10**10
"""Multiply-adds of a fit by conjugate gradients alone: some seconds."""


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
    gram = see(np.ascontiguousarray(see(np.eye(size)).T))
    scale = float(np.trace(moments.cov)) / size
    own = see(np.ascontiguousarray(kernel.T))
    return Regressors(seen_moments(formula, moments, factors), gram, own, scale)


def seen_moments(formula: Formula, moments: Moments, factors: Factors) -> Moments:
    """The moments of the numbers that the carrier weighs."""
    see = patch_map(formula, factors)
    half = see(moments.cov)
    return replace(
        moments,
        cov=see(np.ascontiguousarray(half.T)),
        cross=see(moments.cross),
        mean_in=see(moments.mean_in[:, None])[:, 0],
    )


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


def reduced_rank(formula: Formula, moments: Moments, factors: Factors) -> Factors:
    """Factors of least error of the same rank, for a formula that is ``closed``.

    With the kernel K of least error and second moments S, these are the leading eigenvectors of
    ``K S K^T`` and the projection of K on them (Zhang et al., arXiv 1505.06798, section 3.1).
    """
    import scipy.linalg

    kernel = solve(moments.cov, moments.cross).T
    size, rank = len(kernel), factors[formula.carrier].shape[-1]
    explained, leading = kernel @ moments.cross, (size - rank, size - 1)
    with one_blas_thread():
        _, vectors = scipy.linalg.eigh(explained, subset_by_index=leading, check_finite=False)
    columns = np.ascontiguousarray(vectors[:, ::-1])
    (index,) = (i for i in range(len(formula.terms)) if i != formula.carrier)
    term = formula.terms[index]
    sizes = dict(zip(term, factors[index].shape[1:], strict=True))
    inner = [c for c in "iyx" if c in term]
    rest = (columns.T @ kernel).reshape(rank, *(sizes[c] for c in inner))
    order = [(*formula.ranks, *inner).index(c) for c in term]
    arrays = [columns[None]] * len(formula.terms)
    arrays[index] = np.ascontiguousarray(rest.transpose(order))[None]
    return tuple(arrays)


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


def solve_factor(
    formula: Formula, moments: Moments, factors: Factors, index: int, steps: int = STEPS
) -> Factors:
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
    solution, _ = cg(normal, right, x0=start, rtol=1e-8, maxiter=steps)
    return *factors[:index], solution.reshape(shape), *factors[index + 1 :]


def fit(
    formula: Formula, moments: Moments, kernel: F64, start: Factors, *, strength: float, sweeps: int
) -> Fit:
    """Factors for the target outputs, starting from ``start``, shrunk towards ``kernel``.

    ``sweeps`` alternations improve all factors; with 0 only the carrier is solved. Where there is
    a closed form for all factors, it is taken.
    """
    mixed = shrink(moments, kernel, strength)
    if formula.closed:
        factors = reduced_rank(formula, mixed, start)
        return Fit(factors, best_bias(moments, kernel_matrix(formula, factors)))
    steps, sweeps = _affordable(formula, mixed, sweeps)
    factors = with_best_carrier(formula, mixed, start, steps)
    for _ in range(sweeps):
        for index in range(len(formula.terms)):
            if index != formula.carrier:
                factors = unit(formula, solve_factor(formula, mixed, factors, index, steps), index)
        factors = with_best_carrier(formula, mixed, factors, steps)
    return Fit(factors, best_bias(moments, kernel_matrix(formula, factors)))


def _affordable(formula: Formula, moments: Moments, sweeps: int) -> tuple[int, int]:
    """Steps of conjugate gradients per factor, and alternations: fewer for wide layers where the
    carrier takes such steps too."""
    if "o" not in formula.shared:
        return STEPS, sweeps
    count, outputs = moments.cross.shape
    steps = MOST_WORK // (outputs * count**2)
    per_sweep = STEPS * len(formula.terms)
    if steps >= per_sweep:
        return STEPS, min(sweeps, steps // per_sweep)
    return max(WIDE_STEPS, steps // len(formula.terms)), min(sweeps, 1)


def with_best_carrier(
    formula: Formula, moments: Moments, factors: Factors, steps: int = STEPS
) -> Factors:
    """The factors with the best carrier, or a better one where each output weighs its own numbers
    and the normal equations are too many."""
    if "o" in formula.shared:
        return solve_factor(formula, moments, factors, formula.carrier, steps)
    return solve_carrier(formula, seen_moments(formula, moments, factors), factors)


def unit(formula: Formula, factors: Factors, index: int) -> Factors:
    """One factor with vectors of length 1; the next one on the way to the carrier takes the length.

    The product stays the same. Balanced so, one rate of descent suits every component.
    """
    term, carrier = formula.terms[index], formula.terms[formula.carrier]
    ranks = [c for c in term if c in formula.ranks]
    letter = next((c for c in ranks if c in carrier), ranks[0])
    others = [i for i, t in enumerate(formula.terms) if i != index and letter in t]
    target = formula.carrier if formula.carrier in others else others[0]
    kept = [c for c in term if c in formula.shared or c == letter]
    axes = tuple(axis for axis, c in enumerate(term, start=1) if c not in kept)
    norms = np.sqrt((factors[index] ** 2).sum(axis=axes, keepdims=True))
    norms = np.where(norms > 0, norms, 1.0)
    other = formula.terms[target]
    lengths = norms.squeeze(axes).transpose(0, *(1 + kept.index(c) for c in other if c in kept))
    shape = [factors[target].shape[0]]
    shape += [n if c in kept else 1 for c, n in zip(other, factors[target].shape[1:], strict=True)]
    changed = list(factors)
    changed[index] = factors[index] / norms
    changed[target] = factors[target] * lengths.reshape(shape)
    return tuple(changed)


def best_strength(
    formula: Formula, fitted: Moments, held: Moments, kernel: F64, factors: Factors
) -> float:
    """The strength in ``STRENGTHS`` whose fit on one half does best on the held-out half.

    The fit is that of the carrier alone.
    """
    if formula.common:
        seen = regressors(formula, fitted, kernel, factors)
        return nested_strength(seen, regressors(formula, held, kernel, factors))

    def score(strength: float) -> float:
        mixed = shrink(fitted, kernel, strength)
        weights = kernel_matrix(formula, with_best_carrier(formula, mixed, factors, WIDE_STEPS))
        return output_error(held, weights, best_bias(fitted, weights))

    return min(STRENGTHS, key=score)


def nested_strength(fitted: Regressors, held: Regressors) -> float:
    """As :func:`best_strength`, for the numbers that the carrier weighs."""

    def score(strength: float) -> float:
        seen = fitted.shrunk(strength)
        weights = solve(seen.cov, seen.cross).T
        return output_error(held.moments, weights, best_bias(seen, weights))

    return min(STRENGTHS, key=score)


def fits_of_ranks(
    formula: Formula, fitted: Moments, held: Moments, kernel: F64, plain: Sequence[Fit]
) -> list[tuple[Fit, float]]:
    """For plain splits of several ranks, the better of it and its fit, with its held-out error.

    Of the fit, the carrier alone is solved, unless all factors have a closed form.
    """
    if formula.nested:
        return _nested_fits(formula, fitted, held, kernel, plain)
    middle = plain[len(plain) // 2].factors
    strength = best_strength(formula, fitted, held, kernel, middle)
    mixed = shrink(fitted, kernel, strength)
    steps = STEPS if len(fitted.cov) <= WIDE else WIDE_STEPS
    results = []
    for each in plain:
        factors = with_best_carrier(formula, mixed, each.factors, steps)
        weights = kernel_matrix(formula, factors)
        candidate = Fit(factors, best_bias(fitted, weights))
        error = output_error(held, weights, candidate.bias)
        before = output_error(held, kernel_matrix(formula, each.factors), each.bias)
        results.append((candidate, error) if error < before else (each, before))
    return results


def _nested_fits(
    formula: Formula, fitted: Moments, held: Moments, kernel: F64, plain: Sequence[Fit]
) -> list[tuple[Fit, float]]:
    """The normal equations of a smaller rank are parts of those of the largest."""
    most = max((each.factors for each in plain), key=lambda each: each[formula.carrier].size)
    middle = _leading(formula, plain[len(plain) // 2].factors, most)
    seen = regressors(formula, fitted, kernel, most)
    judge = regressors(formula, held, kernel, most)
    strength = nested_strength(seen.part(middle), judge.part(middle))
    before = [
        output_error(
            judge.part(_leading(formula, each.factors, most)).moments,
            _carrier_matrix(formula, each.factors),
            each.bias,
        )
        for each in plain
    ]
    if formula.closed:
        most = reduced_rank(formula, shrink(fitted, kernel, strength), most)
        seen = regressors(formula, fitted, kernel, most)
        judge = regressors(formula, held, kernel, most)
    results = []
    for each, plain_error in zip(plain, before, strict=True):
        columns = _leading(formula, each.factors, most)
        own, judged = seen.part(columns).shrunk(strength), judge.part(columns).moments
        weights = solve(own.cov, own.cross).T
        bias = best_bias(own, weights)
        error = output_error(judged, weights, bias)
        start = _components(most, each.factors)
        better = Fit(with_carrier(formula, start, weights), bias)
        results.append((better, error) if error < plain_error else (each, plain_error))
    return results


def _components(factors: Factors, like: Factors) -> Factors:
    """The first components of factors, as many as ``like`` has."""
    return tuple(
        factor[tuple(slice(0, size) for size in other.shape)]
        for factor, other in zip(factors, like, strict=True)
    )


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
