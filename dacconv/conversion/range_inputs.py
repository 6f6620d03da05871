"""Inputs that the ranges of activations are measured on, and held-out inputs to judge them by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dacconv.calibration.inputs.families import Inputs
from dacconv.calibration.prepare import CalibrationOptions, choose_inputs
from dacconv.errors import UnsupportedError
from dacconv.formats.base import Feeds, Model
from dacconv.formats.inputs import FAMILIES, count_samples, reason_not_runnable, seeded_inputs
from dacconv.graph.types import Array
from dacconv.support.progress import Progress, silent

NOISE = 64
"""The samples of noise for models without images."""
NO_INT8 = "int8 needs inputs, to measure the ranges of the activations on"


@dataclass(frozen=True, slots=True, eq=False)
class RangeInputs:
    """Inputs to measure ranges on, and held-out inputs of two families to judge them by."""

    fitted: Sequence[Feeds]
    held: Sequence[Feeds]
    second: Sequence[Feeds]
    description: str
    notes: tuple[str, ...] = ()


def range_inputs(
    model: Model, options: CalibrationOptions, progress: Progress = silent
) -> RangeInputs:
    """The inputs that ranges are measured on: those that calibration would use, else noise.

    Raises:
        UnsupportedError: the model cannot be run.
        UsageError: the user's inputs do not fit the model.
    """
    if reason := reason_not_runnable(model):
        raise UnsupportedError(f"{NO_INT8}, but {reason}", where=str(model.path))
    try:
        return of_calibration(choose_inputs(model, options, progress))
    except UnsupportedError as error:
        if options.source not in ("auto", "synthetic"):
            raise
        reason = error.what
    for family in FAMILIES:
        feeds = seeded_inputs(model.inputs(), NOISE, options.seed, family)
        if _finite(model.runner()(feeds[0]).values()):
            break
    return RangeInputs(
        fitted=feeds[::2],
        held=feeds[1::2],
        second=(),
        description=f"{count_samples(feeds)} inputs of noise ({family.name}), half held out",
        notes=(reason,),
    )


def of_calibration(inputs: Inputs) -> RangeInputs:
    """The inputs of a calibration as those of the ranges."""
    return RangeInputs(inputs.fitted, inputs.held, inputs.second, inputs.description, inputs.notes)


def _finite(arrays: Iterable[Array]) -> bool:
    return all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f")
