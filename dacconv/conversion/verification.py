"""Original and converted, side by side in the real runtime on the same inputs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dacconv.calibration.inputs.pixels import InputOptions
from dacconv.calibration.inputs.user_data import UserData
from dacconv.conversion.check_inputs import (
    CheckInputs,
    default_samples,
    model_inputs,
    user_inputs,
)
from dacconv.conversion.comparison import Comparison, agreement, scores_of, worst
from dacconv.conversion.noise import own_noise, with_noise
from dacconv.conversion.verdict import lossless_error
from dacconv.errors import UnsupportedError
from dacconv.formats.base import Feeds, Model, Runner
from dacconv.formats.inputs import batch_of, count_samples, reason_not_runnable, sizes_of
from dacconv.graph.findings import Latency, Verification
from dacconv.graph.types import Array, ValueSpec
from dacconv.support.progress import Progress, silent

ROUNDS = 10
BUDGET_SECONDS = 3.0
"""Extra rounds, on top of one per sample, stop after this time."""


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
    run = _compare(first, second, inputs, progress)
    if not run.outputs.finite and any(np.dtype(spec.dtype).kind == "f" for spec in specs):
        for family in families:
            other = _compare(first, second, family, progress, only_finite=True)
            if other.outputs.finite:
                inputs, run = family, other
                break
    alone = _one_sample(inputs.batches[0], specs)
    times = run.times if alone is inputs.batches[0] else []
    started = time.perf_counter()
    while (len(times) < ROUNDS and time.perf_counter() - started < BUDGET_SECONDS) or not times:
        (_, a), (_, b) = _alternate(first, second, alone, len(times))
        times.append((a, b))
    total = len(inputs.batches)
    progress("verifying", total, total)
    outputs = run.outputs.outputs()
    exact = all(
        c.relative_error is not None and c.relative_error <= lossless_error(outputs)
        for c in outputs
    )
    noise = own_noise(original, first, inputs.batches, thorough=not exact, threads=options.threads)
    outputs = with_noise(outputs, noise)
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


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _spec(spec: ValueSpec) -> str:
    return f"{spec.name} ({sizes_of(spec)}) {spec.dtype}"
