"""Original and converted, side by side in the real runtime on the same seeded inputs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

import numpy as np

from dacconv.errors import UnsupportedError
from dacconv.models.base import Feeds, Model, Runner
from dacconv.progress import Progress, silent
from dacconv.report import Latency, OutputCheck, Verification
from dacconv.types import Array, ValueSpec

SAMPLES = 8
ROUNDS = 10
BUDGET_SECONDS = 3.0
"""Extra rounds, on top of one per sample, stop after this time."""


def verify(
    original: Model,
    converted: Model,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress = silent,
) -> Verification:
    """Run both models on ``samples`` seeded inputs, alternating, and compare every output.

    Inputs are standard normal (uniform 0..255 for uint8). An input whose batch axis is free
    is run with batch 1, which is also what the latency is for.

    Raises:
        UnsupportedError: a model cannot be run, or the size of an input is not known.
    """
    for model in (original, converted):
        if reason := why_not(model):
            raise UnsupportedError(reason, where=str(model.path))
    specs = original.inputs()
    check_same_inputs(specs, converted.inputs())
    batches = _batches(specs, samples, seed)
    first, second = original.runner(threads=threads), converted.runner(threads=threads)
    pairs: list[tuple[dict[str, Array], dict[str, Array]]] = []
    times: list[tuple[float, float]] = []
    for runner in (first, second):
        runner(batches[0])  # the first run plans memory and picks kernels
    started = time.perf_counter()
    for done, feeds in enumerate(batches):
        progress("verifying", done, len(batches))
        (expected, a), (actual, b) = _alternate(first, second, feeds, done)
        pairs.append((expected, actual))
        times.append((a, b))
    while len(times) < ROUNDS and time.perf_counter() - started < BUDGET_SECONDS:
        (_, a), (_, b) = _alternate(first, second, batches[0], len(times))
        times.append((a, b))
    progress("verifying", len(batches), len(batches))
    outputs = _compare(pairs)
    return Verification(
        relative_error=_worst([check.relative_error for check in outputs]),
        agreement=min((c.agreement for c in outputs if c.agreement is not None), default=None),
        outputs=outputs,
        latency=_latency(times, _batch_of(batches[0])),
        samples=sum(_batch_of(feeds) for feeds in batches),
        seed=seed,
        runtime=original.runtime,
        inputs=tuple(f"{name} {_shape(a.shape)} {a.dtype}" for name, a in batches[0].items()),
    )


def why_not(model: Model) -> str | None:
    """Why a model cannot be run here, in words; None where it can."""
    if model.runnable:
        return model.runnable
    for spec in model.inputs():
        if spec.shape is None or any(size is None for size in spec.shape[1:]):
            return (
                f"the model does not fix the size of input '{spec.name}' ({_sizes(spec)}): "
                "give --input-shape"
            )
    return None


def check_same_inputs(expected: Sequence[ValueSpec], actual: Sequence[ValueSpec]) -> None:
    """Raise UnsupportedError where two models do not take the same inputs."""
    for mine, theirs in zip(expected, actual, strict=False):
        same_rank = (
            mine.shape is None or theirs.shape is None or len(mine.shape) == len(theirs.shape)
        )
        if mine.name != theirs.name or mine.dtype != theirs.dtype or not same_rank:
            raise UnsupportedError(
                f"the models take different inputs: {_spec(mine)} and {_spec(theirs)}",
                hint="both must come from the same network",
            )
    if len(expected) != len(actual):
        raise UnsupportedError(
            f"the models take {len(expected)} and {len(actual)} inputs",
            hint="both must come from the same network",
        )


def make_inputs(specs: Sequence[ValueSpec], rng: np.random.Generator) -> dict[str, Array]:
    """One seeded set of inputs, a free batch axis taken as 1."""
    feeds: dict[str, Array] = {}
    for spec in specs:
        shape = tuple(size or 1 for size in spec.shape or ())
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "b":
            feeds[spec.name] = rng.integers(0, 2, shape).astype(bool)
        elif dtype.kind in "iu":
            high = 256 if dtype == np.uint8 else 2
            feeds[spec.name] = rng.integers(0, high, shape).astype(dtype)
        else:
            feeds[spec.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def _batches(specs: Sequence[ValueSpec], samples: int, seed: int) -> list[Feeds]:
    rng = np.random.default_rng(seed)
    feeds: list[Feeds] = [make_inputs(specs, rng)]
    while len(feeds) * _batch_of(feeds[0]) < samples:
        feeds.append(make_inputs(specs, rng))
    return feeds


def _batch_of(feeds: Feeds) -> int:
    first = next(iter(feeds.values()), np.zeros(()))
    return int(first.shape[0]) if first.ndim > 1 else 1


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


def _compare(
    pairs: Sequence[tuple[dict[str, Array], dict[str, Array]]],
) -> tuple[OutputCheck, ...]:
    expected, actual = pairs[0]
    if len(expected) != len(actual):
        raise UnsupportedError(
            f"the models have {len(expected)} and {len(actual)} outputs",
            hint="both must come from the same network",
        )
    return tuple(
        _compare_output(
            name, [list(a.values())[i] for a, _ in pairs], [list(b.values())[i] for _, b in pairs]
        )
        for i, name in enumerate(expected)
    )


def _compare_output(name: str, expected: Sequence[Array], actual: Sequence[Array]) -> OutputCheck:
    matches = all(
        a.shape == b.shape and a.dtype == b.dtype for a, b in zip(expected, actual, strict=True)
    )
    error = largest = agreement = None
    if matches and expected[0].dtype.kind in "fiub":
        squares = [_squares(a, b) for a, b in zip(expected, actual, strict=True)]
        error = _ratio(sum(s[0] for s in squares), sum(s[1] for s in squares))
        largest = max(s[2] for s in squares)
        agreement = _agreement(expected, actual)
    return OutputCheck(
        name=name,
        shape=expected[0].shape,
        dtype=str(expected[0].dtype),
        matches=matches,
        relative_error=error,
        max_abs_error=None if largest is None or not math.isfinite(largest) else largest,
        agreement=agreement,
    )


def _squares(expected: Array, actual: Array) -> tuple[float, float, float]:
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


def _worst(errors: Sequence[float | None]) -> float | None:
    known = [error for error in errors if error is not None]
    return max(known) if known and len(known) == len(errors) else None


def _agreement(expected: Sequence[Array], actual: Sequence[Array]) -> float | None:
    """The share of samples with the same top class, for outputs like ``(batch, classes)``."""
    if expected[0].dtype.kind != "f" or not _like_scores(expected[0].shape):
        return None
    same = [
        (a.reshape(a.shape[0], -1).argmax(1) == b.reshape(b.shape[0], -1).argmax(1))
        for a, b in zip(expected, actual, strict=True)
    ]
    return float(np.concatenate(same).mean())


def _like_scores(shape: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and shape[1] >= 2 and math.prod(shape[2:]) == 1


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _sizes(spec: ValueSpec) -> str:
    if spec.shape is None:
        return "?"
    return "x".join("?" if size is None else str(size) for size in spec.shape)


def _spec(spec: ValueSpec) -> str:
    return f"{spec.name} ({_sizes(spec)}) {spec.dtype}"
