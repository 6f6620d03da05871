"""What splitting does to each layer's output, and the factors that do least harm.

Both are one pass over the model's convs. ``price`` follows the original and tries every rank;
``rebuild`` follows the original and the converted prefix side by side, so that each layer
makes up for the errors before it (asymmetric reconstruction: He, Zhang and Sun 2017, "Channel
pruning", section 3.2; Zhang et al. 2016, "Accelerating very deep networks", section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dacconv.calibration.fit import WIDE, Fit, best_strength, fit, fits_of_ranks, kernel_matrix
from dacconv.calibration.inputs.families import Inputs
from dacconv.calibration.moments import F64, Accumulator, Moments, output_error, pooled
from dacconv.decompositions import METHODS, Factors, Formula
from dacconv.formats.base import Feeds, Visit, Walkable
from dacconv.graph.patches import as_images, patches
from dacconv.graph.types import Array, Choice, Conv, FloatArray
from dacconv.support.progress import Progress

MOST_NUMBERS = 5000
"""The most numbers of a patch: a matrix of its square is kept, and a wider layer is not fitted."""

ROWS = 32_768
"""Positions used per layer and half of the inputs, or 12 per number of a patch if that is more."""

SWEEPS, WIDE_SWEEPS, TUNED_SWEEPS = 12, 4, 2
"""Alternations: few for wide layers, where each takes seconds; fewer where a descent follows."""
PROBES = 16
FULL_RANK = 1e-9
"""A plain split of a smaller error than that has nothing to gain from its other factors."""


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A layer to be split: its conv at ``node`` of the model that is run."""

    name: str
    node: str
    conv: Conv

    @property
    def kernel(self) -> F64:
        """The kernel as ``(out, in * taps)`` in float64."""
        return self.conv.weight.reshape(self.conv.out_channels, -1).astype(np.float64)

    @property
    def bias(self) -> F64:
        """The bias, zeros where there is none."""
        if self.conv.bias is None:
            return np.zeros(self.conv.out_channels)
        return np.asarray(self.conv.bias, np.float64)

    @property
    def narrow(self) -> bool:
        """Whether its patches are few enough numbers for second moments."""
        return int(self.conv.weight[0].size) <= MOST_NUMBERS


@dataclass(frozen=True, slots=True)
class Price:
    """What each split of a layer does: its output error, and the layer's sensitivity."""

    errors: Mapping[Choice, float]
    sensitivity: float

    def damage(self, choice: Choice) -> float:
        """The damage of a split in a unit that adds up over the layers.

        The root of the sensitivity lies half-way between layers that count alike and layers that
        count by what a probe of them did to the output. A probe on calibration images says too
        little to be relied on alone: the last layers of a classifier seem not to matter to images
        without classes. docs/benchmarks_accuracy.md compares the three.
        """
        return math.sqrt(self.sensitivity) * self.errors[choice]


@dataclass(frozen=True, slots=True, eq=False)
class Rebuilt:
    """The factors of one layer and their errors, relative to the output's variance.

    ``plain`` and ``held`` are the held-out errors of the plain split and of the factors;
    ``predicted`` is the error on the inputs that they were fitted to. ``bias`` is None where the
    plain split was kept. ``what`` says in words how they were obtained.
    """

    method: str
    factors: Factors
    bias: F64 | None
    predicted: float
    plain: float
    held: float
    what: str


def price(
    model: Walkable,
    targets: Sequence[Target],
    plain: Mapping[str, Mapping[Choice, Factors]],
    inputs: Inputs,
    progress: Progress,
) -> dict[str, Price]:
    """Output errors of every split in ``plain``, each layer on the original's inputs.

    Splits are fitted to one half of the inputs and judged by the other one and the judging
    families together: a split that only suits inputs of one kind must not look cheap.

    ``plain`` holds the plain factors of each split by layer, those of one method in ascending order
    of their ranks.
    """
    by_node = {target.node: target for target in targets}
    errors: dict[str, dict[Choice, float]] = {}
    probes: dict[str, tuple[Conv, float]] = {}
    families = (inputs.fitted, (*inputs.held, *inputs.second), *inputs.others)
    batches, family_of = _flattened(families)

    def visit(node: str, xs: Sequence[Array]) -> list[Array]:
        target = by_node[node]
        progress("measuring layers", len(errors), len(targets))
        sums = [_sums(target) for _ in _affordable(families, target)]
        share = _share(target, xs)
        outputs = [
            _original(target, x, _get(sums, family_of[index]), share, seed=index)
            for index, x in enumerate(xs)
        ]
        fitted, *judges = sums
        errors[target.name], probes[target.name] = _priced(
            target, plain[target.name], fitted.moments(), pooled(judges)
        )
        return outputs

    outputs = model.walk([target.node for target in targets], visit, batches)
    progress("measuring layers", len(targets), len(targets))
    some = _some(batches)
    prices = {}
    for done, target in enumerate(targets):
        progress("measuring the sensitivity of the output", done, len(targets))
        conv, error = probes[target.name]
        changed = model.walk([target.node], _replacing(conv), some)
        harm = relative_error(outputs[: len(some)], changed)
        prices[target.name] = Price(errors[target.name], harm / max(error, 1e-12))
    progress("measuring the sensitivity of the output", len(targets), len(targets))
    return prices


def rebuild(
    model: Walkable,
    targets: Sequence[Target],
    plain: Mapping[str, tuple[str, Factors]],
    inputs: Inputs,
    progress: Progress,
    *,
    brief: bool = False,
) -> dict[str, Rebuilt]:
    """Factors for the chosen splits, each layer fitted behind the converted ones before it.

    ``plain`` holds the method and the plain factors of each layer. With ``brief`` a
    wide alternation is not worth its time: a descent over all factors follows, or a comparison.
    """
    by_node = {target.node: target for target in targets}
    rebuilt: dict[str, Rebuilt] = {}
    families = (inputs.fitted, inputs.held, *inputs.judges)
    batches, family_of = _flattened(families)

    def visit(node: str, xs: Sequence[Array]) -> list[Array]:
        target = by_node[node]
        progress("reconstructing layers", len(rebuilt), len(targets))
        sums = [_sums(target) for _ in _affordable(families, target)]
        count = len(batches)
        share = _share(target, xs[:count])
        ys = [
            _both(target, xs[i], xs[count + i], _get(sums, family_of[i]), share, seed=i)
            for i in range(count)
        ]
        layer = _rebuilt(target, *plain[target.name], sums, brief=brief)
        rebuilt[target.name] = layer
        conv = as_conv(target, layer.method, layer.factors, layer.bias)
        return ys + [_through(conv, x) for x in xs[count:]]

    model.walk([target.node for target in targets], visit, batches + batches)
    progress("reconstructing layers", len(targets), len(targets))
    return rebuilt


def as_conv(target: Target, method: str, factors: Factors, bias: F64 | None) -> Conv:
    """The one conv that the factors amount to."""
    conv = METHODS[method].recompose(target.conv, factors)
    return replace(conv, bias=target.bias if bias is None else bias)


def relative_error(
    expected: Sequence[Mapping[str, Array]], actual: Sequence[Mapping[str, Array]]
) -> float:
    """The mean over the outputs of ``|y - y'|^2 / |y - mean(y)|^2``; inf where not finite."""
    names = [n for n, a in expected[0].items() if a.dtype.kind == "f" and a.size]
    errors = []
    for name in names:
        before = np.concatenate([_flat(e[name]) for e in expected])
        after = np.concatenate([_flat(a[name]) for a in actual])
        if before.shape != after.shape:
            continue
        size = float(((before - before.mean(axis=0)) ** 2).sum())
        error = float(((before - after) ** 2).sum())
        errors.append(error / size if size > 0 else float(error > 0))
    value = float(np.mean(errors)) if errors else 0.0
    return value if math.isfinite(value) else math.inf


def _flat(array: Array) -> F64:
    made = np.asarray(array, np.float64)
    return made.reshape(len(made), -1) if made.ndim else made.reshape(1, 1)


def _some(batches: Sequence[Feeds]) -> list[Feeds]:
    """The first batches, up to ``PROBES`` samples."""
    taken: list[Feeds] = []
    for feeds in batches:
        taken.append(feeds)
        if sum(len(next(iter(f.values()))) for f in taken) >= PROBES:
            break
    return taken


def _flattened(families: Sequence[Sequence[Feeds]]) -> tuple[tuple[Feeds, ...], list[int]]:
    """All batches, and the index of the family of each."""
    batches = tuple(feeds for family in families for feeds in family)
    return batches, [i for i, family in enumerate(families) for _ in family]


def _affordable(families: Sequence[Sequence[Feeds]], target: Target) -> Sequence[Sequence[Feeds]]:
    """The families whose moments are kept: three for a wide layer, where each takes much memory."""
    return families[:3] if target.conv.weight[0].size > WIDE else families


def _get(sums: Sequence[Accumulator], family: int) -> Accumulator | None:
    return sums[family] if family < len(sums) else None


def _sums(target: Target) -> Accumulator:
    return Accumulator(target.conv.weight[0].size, target.conv.out_channels)


def _share(target: Target, xs: Sequence[Array]) -> float:
    """The share of positions to take in, of all batches alike."""
    positions = sum(len(x) * math.prod(x.shape[2:]) for x in xs) / math.prod(target.conv.stride)
    rows = 2 * max(ROWS, 12 * int(target.conv.weight[0].size))
    return min(1.0, rows / max(positions, 1))


def _taken(
    count: int, share: float, seed: int
) -> slice | np.ndarray[tuple[int], np.dtype[np.intp]]:
    if share >= 1:
        return slice(None)
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(count, max(1, math.ceil(count * share)), replace=False))


def _original(
    target: Target, x: Array, sums: Accumulator | None, share: float, seed: int
) -> FloatArray:
    """The conv's output for one batch, its statistics added to ``sums``."""
    parts = []
    weight, bias = _matrix(target.conv)
    for part, size, rows in patches(target.conv, x):
        y = rows @ weight + bias
        if sums is not None:
            take = _taken(len(rows), share, seed)
            sums.add(rows[take], y[take])
        parts.append(as_images(y, part.stop - part.start, size))
    return np.concatenate(parts)


def _both(
    target: Target, x: Array, converted: Array, sums: Accumulator | None, share: float, seed: int
) -> FloatArray:
    """As ``_original``, with the patches that the converted prefix makes."""
    parts = []
    weight, bias = _matrix(target.conv)
    both = zip(patches(target.conv, x), patches(target.conv, converted), strict=True)
    for (part, size, rows), (_, _, seen) in both:
        y = rows @ weight + bias
        if sums is not None:
            take = _taken(len(rows), share, seed)
            sums.add(seen[take], y[take])
        parts.append(as_images(y, part.stop - part.start, size))
    return np.concatenate(parts)


def _through(conv: Conv, x: Array) -> FloatArray:
    weight, bias = _matrix(conv)
    parts = [
        as_images(rows @ weight + bias, part.stop - part.start, size)
        for part, size, rows in patches(conv, x)
    ]
    return np.concatenate(parts)


def _matrix(conv: Conv) -> tuple[FloatArray, FloatArray]:
    weight = conv.weight.reshape(conv.out_channels, -1).astype(np.float32)
    bias = np.zeros(conv.out_channels) if conv.bias is None else conv.bias
    return np.ascontiguousarray(weight.T), np.asarray(bias, np.float32)


def _replacing(conv: Conv) -> Visit:
    return lambda node, xs: [_through(conv, x) for x in xs]


def _priced(
    target: Target, plain: Mapping[Choice, Factors], moments: Moments, judge: Moments
) -> tuple[dict[Choice, float], tuple[Conv, float]]:
    """Held-out errors by split, and the conv of a middle one with its error."""
    errors: dict[Choice, float] = {}
    middle: tuple[Conv, float] | None = None
    for method in dict.fromkeys(choice.method for choice in plain):
        choices = [choice for choice in plain if choice.method == method]
        starts = [Fit(plain[choice], target.bias) for choice in choices]
        formula = METHODS[method].formula
        fits = fits_of_ranks(formula, moments, judge, target.kernel, starts)
        errors |= {choice: error for choice, (_, error) in zip(choices, fits, strict=True)}
        if middle is None:
            best, error = fits[len(fits) // 2]
            middle = as_conv(target, method, best.factors, best.bias), error
    return errors, middle or (target.conv, 1.0)


def _rebuilt(
    target: Target,
    method: str,
    plain: Factors,
    sums: Sequence[Accumulator],
    *,
    brief: bool,
) -> Rebuilt:
    """The best of the plain split and the fits by the held-out half.

    A fit must not be worse than the plain split on any judging family either. The held-out half is
    never fitted to, or it could judge none of the layers that follow.
    """
    formula, kernel = METHODS[method].formula, target.kernel
    moments, judge, *others = (part.moments() for part in sums)
    start = Fit(plain, target.bias)
    before = _error(judge, formula, start)
    strength = best_strength(formula, moments, judge, kernel, plain)
    full = before < FULL_RANK
    most = TUNED_SWEEPS if brief else WIDE_SWEEPS if len(moments.cov) > WIDE else SWEEPS
    best, best_error, what = start, before, "plain: no fit did better"
    for sweeps in (0,) if full else (0, most):
        candidate = fit(formula, moments, kernel, plain, strength=strength, sweeps=sweeps)
        error = _error(judge, formula, candidate)
        no_worse = all(
            _error(other, formula, candidate) <= _error(other, formula, start) for other in others
        )
        if error < best_error and no_worse:
            best, best_error = candidate, error
            what = "all factors fitted" if sweeps else "one factor fitted"
    return Rebuilt(
        method=method,
        factors=best.factors,
        bias=None if best is start else best.bias,
        predicted=_error(moments, formula, best),
        plain=before,
        held=best_error,
        what=what,
    )


def _error(moments: Moments, formula: Formula, candidate: Fit) -> float:
    return output_error(moments, kernel_matrix(formula, candidate.factors), candidate.bias)
