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

from dacconv.calibration.inputs.families import Inputs
from dacconv.calibration.least_squares import (
    Accumulator,
    Fit,
    Moments,
    best_strength,
    filtered,
    fit,
    fit_leading,
    leading,
    output_error,
    shrunk,
)
from dacconv.formats.base import Feeds, Visit, Walkable
from dacconv.graph.patches import as_images, patches
from dacconv.graph.types import Array, Conv, FloatArray
from dacconv.support.progress import Progress

F64 = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

REGRESSORS = 5000
"""A layer's patches are described by at most so many numbers: a matrix of its square is kept."""

ROWS = 32_768
"""Positions used per layer and half of the inputs, or 12 per regressor where that is more."""

SWEEPS, WIDE_SWEEPS, TUNED_SWEEPS = 12, 4, 2
"""Alternations: few for wide layers, where each takes seconds; fewer where tuning comes after."""
WIDE = 1500
PROBES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A layer to be split: its conv at ``node`` of the walked model.

    ``basis`` ``(in, q, prod(k))`` holds orthonormal filters per input channel, the best first.
    """

    name: str
    node: str
    conv: Conv
    basis: F64

    @property
    def kernel(self) -> F64:
        """The kernel in the coordinates of the basis, ``(out, in * q)``."""
        channels, _, taps = self.basis.shape
        weight = self.conv.weight.astype(np.float64).reshape(-1, channels, taps)
        made = np.matmul(weight.transpose(1, 0, 2), self.basis.transpose(0, 2, 1))
        return np.ascontiguousarray(made.transpose(1, 0, 2)).reshape(len(weight), -1)

    @property
    def bias(self) -> F64:
        """The bias, zeros where there is none."""
        if self.conv.bias is None:
            return np.zeros(self.conv.out_channels)
        return np.asarray(self.conv.bias, np.float64)

    def start(self, rank: int) -> F64:
        """The filters of the plain split, in the coordinates of the basis."""
        channels, numbers, _ = self.basis.shape
        unit = np.eye(numbers)[:rank]
        return np.ascontiguousarray(np.broadcast_to(unit, (channels, *unit.shape)))

    def plain(self, rank: int) -> Fit:
        """The split of the paper: the kernel projected on its best filters."""
        channels, numbers, _ = self.basis.shape
        pointwise = self.kernel.reshape(-1, channels, numbers)[:, :, :rank]
        return Fit(self.start(rank), np.ascontiguousarray(pointwise), self.bias)

    def taps(self, filters: F64) -> F64:
        """Filters in the coordinates of the basis as taps, ``(in, r, prod(k))``."""
        return np.asarray(np.matmul(filters, self.basis))


@dataclass(frozen=True, slots=True)
class Price:
    """What each rank does: held-out output error by rank, and how much the output minds."""

    errors: Mapping[int, float]
    sensitivity: float

    def damage(self, rank: int) -> float:
        """The predicted squared relative error of the model's output."""
        return self.sensitivity * self.errors[rank]


@dataclass(frozen=True, slots=True, eq=False)
class Rebuilt:
    """The factors of one layer and their errors, relative to the output's variance.

    ``plain`` and ``held`` are the held-out errors of the plain split and of what was taken;
    ``predicted`` the error on the inputs that it was fitted to. ``what`` says what was taken.
    """

    filters: F64
    pointwise: F64
    bias: F64 | None
    predicted: float
    plain: float
    held: float
    what: str


def basis_for(right: F64) -> F64:
    """As many of the right singular vectors ``(in, f, prod(k))`` as there is memory for."""
    channels, most, _ = right.shape
    return np.ascontiguousarray(right[:, : max(1, min(most, REGRESSORS // channels))])


def price(
    model: Walkable,
    targets: Sequence[Target],
    ranks: Mapping[str, Sequence[int]],
    inputs: Inputs,
    progress: Progress,
) -> dict[str, Price]:
    """Held-out output errors of every rank in ``ranks``, each layer on the original's inputs."""
    by_node = {target.node: target for target in targets}
    errors: dict[str, dict[int, float]] = {}
    probes: dict[str, tuple[Fit, float]] = {}
    fitted = len(inputs.fitted)

    def visit(node: str, xs: Sequence[Array]) -> list[Array]:
        target = by_node[node]
        progress("measuring layers", len(errors), len(targets))
        sums = [_Sums(target) for _ in range(2)]
        share = _share(target, xs)
        made = []
        for index, x in enumerate(xs):
            half = sums[index >= fitted]
            made.append(_original(target, x, half, share, seed=index))
        errors[target.name], probe = _priced(target, ranks[target.name], *sums)
        probes[target.name] = probe
        return made

    batches = (*inputs.fitted, *inputs.held)
    outputs = model.walk([target.node for target in targets], visit, batches)
    progress("measuring layers", len(targets), len(targets))
    some = _some(batches)
    found = {}
    for done, target in enumerate(targets):
        progress("measuring what the output minds", done, len(targets))
        fit_, error = probes[target.name]
        changed = model.walk([target.node], _replacing(target, fit_), some)
        harm = relative_error(outputs[: len(some)], changed)
        found[target.name] = Price(errors[target.name], harm / max(error, 1e-12))
    progress("measuring what the output minds", len(targets), len(targets))
    return found


def rebuild(
    model: Walkable,
    targets: Sequence[Target],
    ranks: Mapping[str, int],
    inputs: Inputs,
    progress: Progress,
    *,
    tuned: bool = False,
) -> dict[str, Rebuilt]:
    """Factors for the chosen ranks, each layer fitted behind the converted ones before it.

    ``tuned``: they will be improved together afterwards, in as many steps as are worth it.
    """
    by_node = {target.node: target for target in targets}
    made: dict[str, Rebuilt] = {}
    families = (inputs.fitted, inputs.held, inputs.second)
    batches = tuple(feeds for family in families for feeds in family)
    family_of = [i for i, family in enumerate(families) for _ in family]

    def visit(node: str, xs: Sequence[Array]) -> list[Array]:
        target = by_node[node]
        progress("reconstructing layers", len(made), len(targets))
        sums = [_Sums(target) for _ in families]
        count = len(batches)
        share = _share(target, xs[:count])
        ys = [
            _both(target, xs[i], xs[count + i], sums[family_of[i]], share, seed=i)
            for i in range(count)
        ]
        found = _rebuilt(target, ranks[target.name], sums, tuned=tuned)
        made[target.name] = found
        conv = as_conv(target, found)
        return ys + [_through(conv, x) for x in xs[count:]]

    model.walk([target.node for target in targets], visit, batches + batches)
    progress("reconstructing layers", len(targets), len(targets))
    return made


def as_conv(target: Target, factors: Rebuilt | Fit) -> Conv:
    """The one conv that the factors amount to."""
    taps = factors.filters if isinstance(factors, Rebuilt) else target.taps(factors.filters)
    kernel = np.matmul(factors.pointwise.transpose(1, 0, 2), taps).transpose(1, 0, 2)
    bias = target.bias if factors.bias is None else factors.bias
    return replace(target.conv, weight=kernel.reshape(target.conv.weight.shape), bias=bias)


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


class _Sums:
    """The moments of a layer's patches, in the coordinates of its basis."""

    def __init__(self, target: Target) -> None:
        channels, numbers, taps = target.basis.shape
        self.target = target
        self.narrow = numbers < taps
        self.sums = Accumulator(channels * numbers, target.conv.out_channels)

    def add(self, rows: FloatArray, wanted: FloatArray) -> None:
        """Take in patches; where all of a patch is described, their sums are turned instead."""
        self.sums.add(_described(self.target, rows) if self.narrow else rows, wanted)

    def moments(self) -> Moments:
        found = self.sums.moments()
        return found if self.narrow else filtered(found, self.target.basis)


def _share(target: Target, xs: Sequence[Array]) -> float:
    """The share of positions to take in, of all batches alike."""
    positions = sum(len(x) * math.prod(x.shape[2:]) for x in xs) / math.prod(target.conv.stride)
    wanted = 2 * max(ROWS, 12 * math.prod(target.basis.shape[:2]))
    return min(1.0, wanted / max(positions, 1))


def _taken(
    count: int, share: float, seed: int
) -> slice | np.ndarray[tuple[int], np.dtype[np.intp]]:
    if share >= 1:
        return slice(None)
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(count, max(1, math.ceil(count * share)), replace=False))


def _described(target: Target, rows: FloatArray) -> FloatArray:
    """Patches in the coordinates of the basis, float32."""
    channels, numbers, taps = target.basis.shape
    by_channel = rows.reshape(len(rows), channels, taps).transpose(1, 0, 2)
    turned = np.matmul(by_channel, target.basis.transpose(0, 2, 1).astype(np.float32))
    return np.ascontiguousarray(turned.transpose(1, 0, 2)).reshape(len(rows), channels * numbers)


def _original(target: Target, x: Array, sums: _Sums, share: float, seed: int) -> FloatArray:
    """The conv's output for one batch, its statistics added to ``sums``."""
    parts = []
    weight, bias = _matrix(target.conv)
    for part, size, rows in patches(target.conv, x):
        y = rows @ weight + bias
        take = _taken(len(rows), share, seed)
        sums.add(rows[take], y[take])
        parts.append(as_images(y, part.stop - part.start, size))
    return np.concatenate(parts)


def _both(
    target: Target, x: Array, converted: Array, sums: _Sums, share: float, seed: int
) -> FloatArray:
    """As ``_original``, with the patches that the converted prefix makes."""
    parts = []
    weight, bias = _matrix(target.conv)
    both = zip(patches(target.conv, x), patches(target.conv, converted), strict=True)
    for (part, size, rows), (_, _, seen) in both:
        y = rows @ weight + bias
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


def _replacing(target: Target, factors: Fit) -> Visit:
    conv = as_conv(target, factors)
    return lambda node, xs: [_through(conv, x) for x in xs]


def _priced(
    target: Target, ranks: Sequence[int], fitted: _Sums, held: _Sums
) -> tuple[dict[int, float], tuple[Fit, float]]:
    """Held-out errors by rank, and the fit of the middle rank with its error."""
    known, judge = fitted.moments(), held.moments()
    kernel, channels = target.kernel, len(target.basis)
    middle = ranks[len(ranks) // 2] if ranks else 1
    mixed = shrunk(known, kernel, best_strength(known, judge, kernel, channels, middle))

    def best(rank: int) -> tuple[Fit, float]:
        plain = target.plain(rank)
        flat = plain.pointwise.reshape(len(kernel), -1)
        made, bias = fit_leading(mixed, channels, rank)
        here = leading(judge, channels, rank)
        error, before = output_error(here, made, bias), output_error(here, flat, plain.bias)
        fitted = Fit(plain.filters, made.reshape(plain.pointwise.shape), bias)
        return (fitted, error) if error < before else (plain, before)

    found = {rank: best(rank) for rank in {*ranks, middle}}
    return {rank: error for rank, (_, error) in found.items()}, found[middle]


def _rebuilt(target: Target, rank: int, sums: Sequence[_Sums], *, tuned: bool) -> Rebuilt:
    """The best of the plain split and the fits by the held-out half, none worse on the second
    family.

    The held-out half is never fitted to, or it could judge none of the layers that follow.
    """
    fitted, held, second = sums
    known, judge = fitted.moments(), held.moments()
    other = second.moments() if second.sums.count else None
    kernel, plain = target.kernel, target.plain(rank)
    strength = best_strength(known, judge, kernel, len(target.basis), rank)
    full = rank >= target.basis.shape[1]
    before = best_error = _error(judge, plain)
    best, what = plain, "plain: nothing did better"
    most = TUNED_SWEEPS if tuned else WIDE_SWEEPS if len(known.cov) > WIDE else SWEEPS
    for sweeps in (0,) if full else (0, most):
        made = fit(known, kernel, plain.filters, strength=strength, sweeps=sweeps)
        error = _error(judge, made)
        if error < best_error and (other is None or _error(other, made) <= _error(other, plain)):
            best_error, best = error, made
            what = f"{'filters and ' if sweeps else ''}pointwise fitted"
    return _as_rebuilt(target, best, known, before, best_error, what)


def _as_rebuilt(
    target: Target, made: Fit, known: Moments, plain: float, held: float, what: str
) -> Rebuilt:
    return Rebuilt(
        filters=target.taps(made.filters),
        pointwise=made.pointwise,
        bias=None if what.startswith("plain") else made.bias,
        predicted=_error(known, made),
        plain=plain,
        held=held,
        what=what,
    )


def _error(moments: Moments, made: Fit) -> float:
    return output_error(moments, made.kernel, made.bias)
