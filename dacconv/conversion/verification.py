"""Original and converted, side by side in the real runtime on the same seeded inputs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dacconv.errors import UnsupportedError
from dacconv.formats.base import Feeds, Model, Runner
from dacconv.formats.inputs import (
    FAMILIES,
    NORMAL,
    batch_of,
    reason_not_runnable,
    seeded_inputs,
    sizes_of,
)
from dacconv.graph.findings import Latency, OutputCheck, Verification
from dacconv.graph.types import Array, ValueSpec
from dacconv.support.progress import Progress, silent

SAMPLES = 8
ROUNDS = 10
BUDGET_SECONDS = 3.0
"""Extra rounds, on top of one per sample, stop after this time."""


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """How two models are compared: on ``samples`` inputs of a seed, with so many threads."""

    verify: bool = True
    samples: int = SAMPLES
    seed: int = 0
    threads: int | None = None


def verify(
    original: Model,
    converted: Model,
    options: CheckOptions | None = None,
    *,
    progress: Progress = silent,
) -> Verification:
    """Run both models on the same seeded inputs, alternating, and compare every output.

    Inputs are standard normal (uniform 0..255 for uint8); where the original's outputs are not
    finite on these, the first of ``FAMILIES`` on which they are. An input whose batch axis is
    free is run with batch 1, which is also what the latency is for.

    Raises:
        UnsupportedError: a model cannot be run, or the size of an input is not known.
    """
    options = options or CheckOptions()
    for model in (original, converted):
        if reason := reason_not_runnable(model):
            raise UnsupportedError(reason, where=str(model.path))
    specs = original.inputs()
    check_same_inputs(specs, converted.inputs())
    first, second = (model.runner(threads=options.threads) for model in (original, converted))
    family, batches = NORMAL, seeded_inputs(specs, options.samples, options.seed)
    for runner in (first, second):
        runner(batches[0])  # the first run plans memory and picks kernels
    started = time.perf_counter()
    compared, times = _compare(first, second, batches, progress)
    if not compared.finite and any(np.dtype(spec.dtype).kind == "f" for spec in specs):
        for other in FAMILIES[1:]:
            feeds = seeded_inputs(specs, options.samples, options.seed, other)
            again, again_times = _compare(first, second, feeds, progress, only_finite=True)
            if again.finite:
                family, batches, compared, times = other, feeds, again, again_times
                break
    while len(times) < ROUNDS and time.perf_counter() - started < BUDGET_SECONDS:
        (_, a), (_, b) = _alternate(first, second, batches[0], len(times))
        times.append((a, b))
    progress("verifying", len(batches), len(batches))
    outputs = compared.outputs()
    return Verification(
        relative_error=worst([check.relative_error for check in outputs]),
        agreement=agreement(outputs),
        outputs=outputs,
        latency=_latency(times, batch_of(batches[0])),
        samples=sum(batch_of(feeds) for feeds in batches),
        seed=options.seed,
        runtime=original.runtime,
        inputs=tuple(f"{name} {_shape(a.shape)} {a.dtype}" for name, a in batches[0].items()),
        family=family.name,
    )


def _compare(
    first: Runner,
    second: Runner,
    batches: Sequence[Feeds],
    progress: Progress,
    *,
    only_finite: bool = False,
) -> tuple[Comparison, list[tuple[float, float]]]:
    """Every output of both models, and the seconds that each run took.

    With ``only_finite`` it ends at the first run whose original outputs are not finite.
    """
    compared = Comparison()
    times: list[tuple[float, float]] = []
    for index, feeds in enumerate(batches):
        progress("verifying", index, len(batches))
        (expected, a), (actual, b) = _alternate(first, second, feeds, index)
        compared.add(expected, actual)
        times.append((a, b))
        if only_finite and not compared.finite:
            break
    return compared, times


def check_same_inputs(expected: Sequence[ValueSpec], actual: Sequence[ValueSpec]) -> None:
    """Raise UnsupportedError where two models do not take the same inputs."""
    for ours, theirs in zip(expected, actual, strict=False):
        same_rank = (
            ours.shape is None or theirs.shape is None or len(ours.shape) == len(theirs.shape)
        )
        if ours.name != theirs.name or ours.dtype != theirs.dtype or not same_rank:
            raise UnsupportedError(
                f"the models take different inputs: {_spec(ours)} and {_spec(theirs)}",
                hint="both must come from the same network",
            )
    if len(expected) != len(actual):
        raise UnsupportedError(
            f"the models take {len(expected)} and {len(actual)} inputs",
            hint="both must come from the same network",
        )


def side_by_side(first: Runner, second: Runner, feeds: Feeds, rounds: int = ROUNDS) -> Latency:
    """The latency of two models on the same inputs, in turn, after a run of each to warm up."""
    for runner in (first, second):
        runner(feeds)
    times = []
    for turn in range(rounds):
        (_, a), (_, b) = _alternate(first, second, feeds, turn)
        times.append((a, b))
    return _latency(times, batch_of(feeds))


def _alternate(
    first: Runner, second: Runner, feeds: Feeds, turn: int
) -> tuple[tuple[dict[str, Array], float], tuple[dict[str, Array], float]]:
    """Run both, the one that goes first changing every turn."""
    if turn % 2:
        after = _timed(second, feeds)
        return _timed(first, feeds), after
    before = _timed(first, feeds)
    return before, _timed(second, feeds)


def _timed(runner: Runner, feeds: Feeds) -> tuple[dict[str, Array], float]:
    started = time.perf_counter()
    outputs = runner(feeds)
    return outputs, time.perf_counter() - started


def _latency(times: Sequence[tuple[float, float]], batch: int) -> Latency:
    ratios = sorted(a / b for a, b in times)
    low, high = np.quantile(ratios, [0.25, 0.75])
    original, converted = (statistics.median(column) for column in zip(*times, strict=True))
    return Latency(
        original_ms=1e3 * original,
        converted_ms=1e3 * converted,
        speedup=original / converted,
        low=float(low),
        high=float(high),
        rounds=len(times),
        batch=batch,
    )


class Comparison:
    """Every output of two models, compared as the runs come in."""

    def __init__(self) -> None:
        self._outputs: dict[str, _OutputSums] = {}

    def add(self, expected: Mapping[str, Array], actual: Mapping[str, Array]) -> None:
        """Add what both models returned for the same inputs.

        Raises:
            UnsupportedError: the models have different numbers of outputs.
        """
        if len(expected) != len(actual):
            raise UnsupportedError(
                f"the models have {len(expected)} and {len(actual)} outputs",
                hint="both must come from the same network",
            )
        for (name, a), b in zip(expected.items(), actual.values(), strict=True):
            self._outputs.setdefault(name, _OutputSums(a.shape, str(a.dtype))).add(a, b)

    @property
    def finite(self) -> bool:
        """Whether all outputs of the original were finite so far."""
        return not any(sums.not_finite for sums in self._outputs.values())

    def outputs(self) -> tuple[OutputCheck, ...]:
        """The result for each output."""
        return tuple(sums.check(name) for name, sums in self._outputs.items())


@dataclass(slots=True)
class _OutputSums:
    """One output of both models: sums over the runs so far."""

    shape: tuple[int, ...]
    dtype: str
    matches: bool = True
    difference: float = 0.0
    size: float = 0.0
    largest: float = 0.0
    samples: int = 0
    same: int = 0
    not_finite: int = 0

    def add(self, a: Array, b: Array) -> None:
        """Add one run: ``a`` is the original's output, ``b`` the converted model's."""
        self.not_finite += a.dtype.kind == "f" and not bool(np.isfinite(a).all())
        self.matches = self.matches and a.shape == b.shape and a.dtype == b.dtype
        if not self.matches or a.dtype.kind not in "fiub":
            return
        difference, size, largest = _squares(a, b)
        self.difference += difference
        self.size += size
        self.largest = max(self.largest, largest) if largest == largest else largest
        if a.dtype.kind == "f" and _like_scores(a.shape):
            scores, others = a.reshape(len(a), -1), b.reshape(len(b), -1)
            comparable = np.isfinite(scores.max(1))  # NaN, and infinity, have no top class
            same = scores.argmax(1) == others.argmax(1)
            self.samples += int(comparable.sum())
            self.same += int((same & np.isfinite(others.max(1)))[comparable].sum())

    def check(self, name: str) -> OutputCheck:
        known = self.matches and np.dtype(self.dtype).kind in "fiub"
        return OutputCheck(
            name=name,
            shape=self.shape,
            dtype=self.dtype,
            matches=self.matches,
            relative_error=_ratio(self.difference, self.size) if known else None,
            max_abs_error=self.largest if known and math.isfinite(self.largest) else None,
            agreement=self.same / self.samples if known and self.samples else None,
            not_finite=self.not_finite,
        )


def _squares(expected: Array, actual: Array) -> tuple[float, float, float]:
    """Squared norms of the difference and of ``expected``, and the largest difference."""
    with np.errstate(all="ignore"):  # NaN and infinite values end as NaN, which is not known
        a = expected.astype(np.float64).ravel()
        difference = actual.astype(np.float64).ravel() - a
        largest = float(np.abs(difference).max()) if difference.size else 0.0
        return float(difference @ difference), float(a @ a), largest


def _ratio(difference: float, size: float) -> float | None:
    """``|y - y'| / |y|``; None where it is not a number, so that no gate takes it for small."""
    if difference == 0:
        return 0.0
    value = math.sqrt(difference / size) if size > 0 else math.inf
    return value if math.isfinite(value) else None


def agreement(outputs: Sequence[OutputCheck]) -> float | None:
    """The smallest agreement; None where no output has class scores that can be compared.

    An output that looks like scores but was NaN in every run makes it None: nothing is known
    of that one.
    """
    if any(c.agreement is None and c.not_finite and _like_scores(c.shape) for c in outputs):
        return None
    return min((c.agreement for c in outputs if c.agreement is not None), default=None)


def worst(errors: Sequence[float | None]) -> float | None:
    """The largest error; None where one is not known."""
    known = [error for error in errors if error is not None]
    return max(known) if known and len(known) == len(errors) else None


def _like_scores(shape: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and shape[1] >= 2 and math.prod(shape[2:]) == 1


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _spec(spec: ValueSpec) -> str:
    return f"{spec.name} ({sizes_of(spec)}) {spec.dtype}"
