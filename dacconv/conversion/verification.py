"""Original and converted, side by side in the real runtime on the same inputs."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dacconv.calibration.inputs.pixels import InputOptions
from dacconv.calibration.inputs.user_data import UserData
from dacconv.conversion.check_inputs import (
    CheckInputs,
    count_samples,
    default_samples,
    model_inputs,
    user_inputs,
)
from dacconv.errors import UnsupportedError
from dacconv.formats.base import Feeds, Model, Runner
from dacconv.formats.inputs import batch_of, reason_not_runnable, sizes_of
from dacconv.graph.findings import Latency, OutputCheck, Verification
from dacconv.graph.types import Array, ValueSpec
from dacconv.support.progress import Progress, silent

ROUNDS = 10
BUDGET_SECONDS = 3.0
"""Extra rounds, on top of one per sample, stop after this time."""
ONE_CLASS = 0.9
"""Where the original gives one class for a larger share of the inputs, agreement says little."""


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """How two models are compared.

    On ``samples`` inputs of a seed (None: more of a model that is cheap to run), drawn as
    ``input`` says, or on the user's ``data``; by the runtime with so many threads.
    """

    verify: bool = True
    samples: int | None = None
    seed: int = 0
    threads: int | None = None
    input: InputOptions = field(default_factory=InputOptions)
    data: UserData | Path | None = None


def verify(
    original: Model,
    converted: Model,
    options: CheckOptions | None = None,
    *,
    progress: Progress = silent,
) -> Verification:
    """Run both models on the same inputs, alternating, and compare every output.

    Inputs are the user's data; else images drawn for the original where it takes images, and
    seeded noise where it does not; where the original's outputs are not finite on these, the
    first family of noise on which they are. An input whose batch axis is free is run with batch
    1, which is also what the latency is for.

    Raises:
        UnsupportedError: a model cannot be run, or the size of an input is not known.
        UsageError: the user's data cannot be read, or does not fit the model.
    """
    options = options or CheckOptions()
    for model in (original, converted):
        if reason := reason_not_runnable(model):
            raise UnsupportedError(reason, where=str(model.path))
    specs = original.inputs()
    check_same_inputs(specs, converted.inputs())
    first, second = (model.runner(threads=options.threads) for model in (original, converted))
    progress("preparing inputs", 0, 1)
    families = _families(original, first, options)
    inputs = next(families)
    for runner in (first, second):
        runner(inputs.batches[0])  # the first run plans memory and picks kernels
    started = time.perf_counter()
    run = _compare(first, second, inputs, progress)
    if not run.outputs.finite and any(np.dtype(spec.dtype).kind == "f" for spec in specs):
        for family in families:
            other = _compare(first, second, family, progress, only_finite=True)
            if other.outputs.finite:
                inputs, run = family, other
                break
    alone = _one_sample(inputs.batches[0], specs)
    times = run.times if alone is inputs.batches[0] else []
    while (len(times) < ROUNDS and time.perf_counter() - started < BUDGET_SECONDS) or not times:
        (_, a), (_, b) = _alternate(first, second, alone, len(times))
        times.append((a, b))
    total = len(inputs.batches)
    progress("verifying", total, total)
    outputs = run.outputs.outputs()
    return Verification(
        relative_error=worst([check.relative_error for check in outputs]),
        agreement=agreement(outputs),
        outputs=outputs,
        latency=_latency(times, batch_of(alone)),
        samples=count_samples(inputs.batches),
        seed=options.seed,
        runtime=original.runtime,
        inputs=tuple(f"{name} {_shape(a.shape)} {a.dtype}" for name, a in alone.items()),
        family=inputs.family,
        kind=inputs.kind,
        notes=inputs.notes,
        top1=run.top1(),
    )


def _families(model: Model, runner: Runner, options: CheckOptions) -> Iterator[CheckInputs]:
    """The inputs to compare on, and those to take where the original's outputs are not finite."""
    if options.data is not None:
        yield user_inputs(model, runner, options.data, options.input)
        return
    samples = options.samples or default_samples(model)
    yield from model_inputs(model, runner, samples, options.seed, options.input)


def _one_sample(feeds: Feeds, specs: Sequence[ValueSpec]) -> Feeds:
    """The first sample of a batch where the batch axis is free; the batch where it is not."""
    fixed = any(spec.shape is None or not spec.shape or (spec.shape[0] or 1) > 1 for spec in specs)
    if fixed or batch_of(feeds) == 1:
        return feeds
    return {name: array[:1] for name, array in feeds.items()}


@dataclass(slots=True)
class _Run:
    """What was compared: outputs, the seconds of each run, and right answers where known."""

    outputs: Comparison
    times: list[tuple[float, float]] = field(default_factory=list)
    labelled: int = 0
    right: list[int] = field(default_factory=lambda: [0, 0])

    def count_right(self, labels: Array, results: Sequence[Mapping[str, Array]]) -> None:
        """Count the samples whose top class is the label, for each of the two models."""
        self.labelled += len(labels)
        for index, outputs in enumerate(results):
            guesses = scores_of(outputs, len(labels)).argmax(1)
            self.right[index] += int((guesses == labels).sum())

    def top1(self) -> tuple[float, float] | None:
        """The accuracy of both models; None without labels."""
        if not self.labelled:
            return None
        return self.right[0] / self.labelled, self.right[1] / self.labelled


def _compare(
    first: Runner,
    second: Runner,
    inputs: CheckInputs,
    progress: Progress,
    *,
    only_finite: bool = False,
) -> _Run:
    """Every output of both models, and the seconds that each run took.

    With ``only_finite`` it ends at the first run whose original outputs are not finite.
    """
    run = _Run(Comparison())
    for index, feeds in enumerate(inputs.batches):
        progress("verifying", index, len(inputs.batches))
        (expected, a), (actual, b) = _alternate(first, second, feeds, index)
        run.outputs.add(expected, actual)
        run.times.append((a, b))
        if inputs.labels is not None:
            run.count_right(inputs.labels[index], (expected, actual))
        if only_finite and not run.outputs.finite:
            break
    return run


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
    speedup, interval = original / converted, _median_interval(ratios)
    if interval is not None:  # the ratio of the medians is not always the median of the ratios
        interval = (min(interval[0], speedup), max(interval[1], speedup))
    return Latency(
        original_ms=1e3 * original,
        converted_ms=1e3 * converted,
        speedup=speedup,
        low=float(low),
        high=float(high),
        rounds=len(times),
        batch=batch,
        interval=interval,
    )


def _median_interval(ordered: Sequence[float], miss: float = 0.05) -> tuple[float, float] | None:
    """The interval of order statistics that contains the median with probability ``1 - miss``.

    As ``timing.intervals.median_interval``, without scipy, whose import takes longer than the
    runs. None for five values or fewer, which cannot give 95 %.
    """
    n, outside, k = len(ordered), 0.0, 0
    while k < n // 2 and (outside := outside + 2 * math.comb(n, k) / 2**n) <= miss:
        k += 1
    return (ordered[k - 1], ordered[n - k]) if k else None


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
    expected: Counter[int] = field(default_factory=Counter)
    actual: Counter[int] = field(default_factory=Counter)

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
            top, other = scores.argmax(1), others.argmax(1)
            self.samples += int(comparable.sum())
            self.same += int(((top == other) & np.isfinite(others.max(1)))[comparable].sum())
            self.expected.update(top[comparable].tolist())
            self.actual.update(other[comparable].tolist())

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
            chance=self._chance() if known and self.samples else None,
        )

    def _chance(self) -> float | None:
        """The agreement of two models that are independent and give each class as often."""
        if max(self.expected.values()) > ONE_CLASS * self.samples:
            return None
        both = sum(count * self.actual[label] for label, count in self.expected.items())
        return both / self.samples**2


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


def scores_of(outputs: Mapping[str, Array], samples: int) -> Array:
    """The first output that looks like class scores, as ``(samples, classes)``.

    Raises:
        UnsupportedError: no output does.
    """
    for array in outputs.values():
        if (
            array.ndim >= 2
            and array.shape[0] == samples
            and array.size == samples * max(array.shape[1:])
        ):
            return array.reshape(samples, -1)
    raise UnsupportedError(
        "no output of the model looks like class scores",
        hint="--eval FILE.py:FUNCTION measures whatever you like",
    )


def _like_scores(shape: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and shape[1] >= 2 and math.prod(shape[2:]) == 1


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _spec(spec: ValueSpec) -> str:
    return f"{spec.name} ({sizes_of(spec)}) {spec.dtype}"
