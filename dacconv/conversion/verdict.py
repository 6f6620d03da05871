"""What a verification means: equal, usable, degraded or broken, by limits that are stated.

The limits are on what was measured: on labelled images of the user's the accuracy, on others the
agreement of the top classes, and for models that give no class scores, or one class for nearly
all inputs, the relative error. ``docs/report.md`` lists them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dacconv.conversion.noise import error_beyond_noise
from dacconv.graph.findings import Latency, OutputCheck, Verification
from dacconv.support.numbers import three_digits

Level = Literal["equal", "usable", "degraded", "broken", "unknown"]

USABLE_AGREEMENT = 0.8
"""On drawn images, which are harder to agree on than those that a model was trained for."""
USABLE_AGREEMENT_ON_DATA = 0.95
USABLE_DROP = 0.02
"""The accuracy that may be lost on the user's labelled images."""
USABLE_ERROR = 0.1
BROKEN_ERROR = 1.0
"""Outputs of zeros have this relative error."""
NOISY = 0.03
"""Where the original differs from itself by more, no error that is not larger can be measured."""
MANY_SAMPLES = 32
"""From so many samples on, agreement must exceed chance by more than its standard error."""
SAME_SPEED = 0.03
"""Ratios of times that are closer to 1 are no difference, however narrow their interval."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A level, and the numbers that it follows from, in words."""

    level: Level
    reason: str


def verdict_on(check: Verification | None, unverified: str | None = None) -> Verdict:
    """The verdict on a verification; ``unverified`` says why there is none."""
    if check is None:
        return Verdict("unknown", f"not verified: {unverified or 'no model was converted'}")
    if reason := _broken(check):
        return Verdict("broken", reason)
    if check.not_finite:
        return Verdict("unknown", "the original's outputs are NaN or infinite")
    error, where = check.relative_error, f"{check.samples} {check.kind}"
    if error is None and (unstable := [o.name for o in check.outputs if o.varies]):
        text = f"the shape of output {unstable[0]} depends on rounding in the original too"
        return Verdict("unknown", text)
    if error is None:
        return Verdict("unknown", "the outputs cannot be compared as numbers")
    error_text = f"relative error {three_digits(error)}"
    same = is_lossless(check)
    drowned = same and error > lossless_error(check.outputs)
    if drowned:
        noise = three_digits(check.noise or 0)
        error_text += f"; that of the original against itself, by rounding alone: {noise}"
    if check.top1 is not None:
        before, after = check.top1
        text = f"top-1 {_percent(before)} before, {_percent(after)} after on {where}"
        if same and not _is_chaotic(check):
            return Verdict("equal", f"{text}, {error_text}")
        return Verdict("usable" if before - after <= USABLE_DROP else "degraded", text)
    if same:
        level: Level = "unknown" if drowned and _is_chaotic(check) else "equal"
        return Verdict(
            level, f"{error_text} on {where}" if not drowned else f"{error_text}; {where}"
        )
    if check.agreement is None or not _classes_differ(check):
        level = "usable" if error <= USABLE_ERROR else "degraded"
        return Verdict(level, f"{error_text} on {where}")
    limit = USABLE_AGREEMENT_ON_DATA if check.on_user_data else USABLE_AGREEMENT
    level = "usable" if check.agreement >= limit else "degraded"
    text = f"{_percent(check.agreement)} of {where} keep their top class, {error_text}"
    return Verdict(level, text)


def lossless_error(outputs: Sequence[OutputCheck]) -> float:
    """The largest relative error of outputs that are the same but for rounding."""
    half = any(output.dtype in ("float16", "bfloat16") for output in outputs)
    return 2e-2 if half else 1e-4


def is_lossless(check: Verification) -> bool:
    """Whether every output is the same but for rounding, or but for the runtime's own noise."""
    error = error_beyond_noise(check.relative_error, check.outputs)
    return error is not None and error <= lossless_error(check.outputs)


def speed_change(time: Latency) -> float | None:
    """The ratio of times, original over converted; None where no difference can be measured."""
    low, high = time.interval or (time.low, time.high)
    if low <= 1 <= high or abs(time.speedup - 1) <= SAME_SPEED:
        return None
    return time.speedup


def _broken(check: Verification) -> str:
    """The reason why a converted model is of no use; empty where it may be of some."""
    for output in check.outputs:
        if not output.matches and not output.varies:
            return f"output {output.name} has another shape or type than the original's"
        if _only_converted_is_not_finite(output):
            return f"output {output.name} is NaN or infinite, and the original's is not"
    error = error_beyond_noise(check.relative_error, check.outputs)
    if error is not None and error > BROKEN_ERROR:
        return (
            f"relative error {three_digits(error)} on {check.samples} {check.kind}; "
            f"{BROKEN_ERROR:g} is that of outputs of zeros"
        )
    for output in check.outputs:
        if output.agreement is None or output.chance is None:
            continue
        chance = output.chance
        if check.samples >= MANY_SAMPLES:
            chance += math.sqrt(chance * (1 - chance) / check.samples)
        if output.agreement <= chance:
            return (
                f"{_percent(output.agreement)} of {check.samples} {check.kind} keep their top "
                f"class, and {_percent(output.chance)} would by chance"
            )
    return ""


def _only_converted_is_not_finite(output: OutputCheck) -> bool:
    if output.not_finite or output.relative_error is not None or not output.matches:
        return False
    return np.dtype(output.dtype).kind == "f" and output.max_abs_error is None


def _is_chaotic(check: Verification) -> bool:
    """Whether rounding alone changes the outputs so much that small errors cannot be seen."""
    return (check.noise or 0.0) > NOISY


def _classes_differ(check: Verification) -> bool:
    """Whether the original gives several classes, so that agreement says something."""
    return any(output.chance is not None for output in check.outputs)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
