"""The noise of a runtime: by how much a model's outputs differ from its own.

Rounding changes with the order of sums, so two exact ways to compute one network do not give the
same bits. How far that reaches the outputs depends on the network: about 1e-7 for most, 1e-2 for
scores close to zero, everything for a chaotic network. An error is one only beyond that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dacconv.conversion.comparison import Comparison
from dacconv.errors import DacconvError
from dacconv.formats.base import Feeds, Model, Runner, Unoptimised
from dacconv.graph.findings import OutputCheck

STEP = 1e-7
"""The relative step by which inputs are moved: about one unit in the last place of float32."""
FACTOR = 3.0
"""An error counts from this multiple of the noise on, which is measured on a few runs only."""
SECONDS = 4.0
"""The noise is measured on the inputs of the first so many seconds."""


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of one output.

    ``error`` is the relative error of the original against itself, None where the output is not
    numbers. ``varies`` is true where already the shape of the output depends on rounding.
    """

    error: float | None = None
    varies: bool = False


def with_noise(
    outputs: Sequence[OutputCheck], noise: Mapping[str, Noise]
) -> tuple[OutputCheck, ...]:
    """The comparison of the outputs, with the noise of each."""
    found = [noise.get(output.name, Noise()) for output in outputs]
    return tuple(
        replace(output, noise=each.error, varies=each.varies)
        for output, each in zip(outputs, found, strict=True)
    )


def own_noise(
    model: Model,
    runner: Runner,
    batches: Sequence[Feeds],
    *,
    thorough: bool,
    threads: int | None = None,
) -> dict[str, Noise]:
    """The noise of each output of ``model``, which ``runner`` runs.

    The model is compared with itself on inputs that are moved by ``STEP``. With ``thorough`` also
    with itself as the runtime runs it without optimising, and on all of ``batches`` that the time
    allows; without, on the first one. The larger difference counts.
    """
    variants: list[Callable[[Feeds, int], Mapping[str, np.ndarray]]] = [
        lambda feeds, index: runner(moved(feeds, index))
    ]
    if thorough and (plain := _unoptimised(model, threads)):
        variants.append(lambda feeds, _: plain(feeds))
    comparisons = [Comparison() for _ in variants]
    started = time.perf_counter()
    for index, feeds in enumerate(batches):
        expected = runner(feeds)
        for variant, comparison in zip(variants, comparisons, strict=True):
            comparison.add(expected, variant(feeds, index))
        if not thorough or time.perf_counter() - started > SECONDS:
            break
    noise: dict[str, Noise] = {}
    for comparison in comparisons:
        for check in comparison.outputs():
            before = noise.get(check.name, Noise())
            errors = [e for e in (before.error, check.relative_error) if e is not None]
            noise[check.name] = Noise(max(errors, default=None), before.varies or not check.matches)
    return noise


def moved(feeds: Feeds, seed: int = 0) -> Feeds:
    """The inputs with every number of a floating-point type moved by ``STEP``, up or down."""
    rng = np.random.default_rng(seed)

    def move(array: np.ndarray) -> np.ndarray:
        if array.dtype.kind != "f":
            return array
        signs = 2.0 * rng.integers(0, 2, array.shape, np.int8) - 1.0
        with np.errstate(all="ignore"):  # the largest numbers overflow
            result = (array * (1 + STEP * signs)).astype(array.dtype)
        return np.where(np.isfinite(result), result, array)

    return {name: move(np.asarray(array)) for name, array in feeds.items()}


def within_noise(output: OutputCheck) -> bool:
    """Whether the difference of an output is no more than what rounding makes."""
    if output.varies:
        return True
    if output.relative_error is None or output.noise is None:
        return False
    return output.relative_error <= FACTOR * output.noise


def error_beyond_noise(
    relative_error: float | None, outputs: Sequence[OutputCheck]
) -> float | None:
    """The largest error among the outputs that differ by more than noise; None if not known.

    0 where no output does. ``relative_error`` is the largest over all outputs.
    """
    if not outputs:
        return relative_error
    if all(output.varies for output in outputs):
        return None
    errors = [output.relative_error for output in outputs if not within_noise(output)]
    known = [error for error in errors if error is not None and math.isfinite(error)]
    return max(known, default=0.0) if len(known) == len(errors) else None


def _unoptimised(model: Model, threads: int | None) -> Runner | None:
    if not isinstance(model, Unoptimised):
        return None
    try:
        return model.unoptimised_runner(threads=threads)
    except DacconvError:  # the runtime needs its optimisations for this model
        return None
