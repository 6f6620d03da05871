"""How pixels in 0..1 become what a model expects: as the user says, or as the model implies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dacconv.calibration.inputs.scale import Affinity, implied_scale, scale_of_biases
from dacconv.calibration.inputs.slots import Slot, one_run
from dacconv.errors import DacconvError, UsageError
from dacconv.formats.base import Model
from dacconv.fusions.merged import merged
from dacconv.graph.types import FloatArray

SAY = "--input-range, --input-mean and --input-std say otherwise"
NORMALISED = Affinity(
    np.full(3, 1 / 0.225),
    np.full(3, -2.0),
    f"nothing in the model says how its input is scaled: about -2..2.4 was assumed; {SAY}",
    guessed=True,
)
"""Colours freed of ImageNet's mean and divided by its deviation, as most classifiers want them."""


@dataclass(frozen=True, slots=True)
class InputOptions:
    """What the user says about the model's input.

    A pixel in 0..1 becomes ``(low + (high - low) * pixel - mean) / std`` per channel.
    ``layout`` is ``nchw`` or ``nhwc``, ``order`` ``rgb`` or ``bgr``. None is: find out.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    range: tuple[float, float] | None = None
    layout: str | None = None
    order: str = "rgb"
    images: int | None = None

    @property
    def given(self) -> bool:
        """Whether the user says how pixels are scaled."""
        return not (self.mean is None and self.std is None and self.range is None)


def pixel_scale(model: Model, slot: Slot, options: InputOptions, images: FloatArray) -> Affinity:
    """How pixels in 0..1 become what the model expects: as the user says, or as it implies."""
    if options.given:
        low, high = options.range or (0.0, 1.0)
        mean = per_channel(options.mean or (0.0,), slot, "--input-mean")
        std = per_channel(options.std or (1.0,), slot, "--input-std")
        if not all(std):
            raise UsageError("0 is no scale", where="--input-std")
        return Affinity((high - low) / std, (low - mean) / std, "the input is scaled as you said")
    if slot.spec.dtype == "uint8":
        return _plain(slot, 255.0, "the input is of bytes: 0..255 was assumed")
    found = implied_scale(model, slot.spec.name, images, last=slot.last)
    found = found or scale_of_biases(merged(model), images)
    if found is not None:
        return found
    if slot.channels == 3 and len(slot.size) == 2 and not restores(model, slot):
        return NORMALISED
    told = f"nothing in the model says how its input is scaled: 0..1 was assumed; {SAY}"
    return _plain(slot, 1.0, told, guessed=True)


def per_channel(values: Sequence[float], slot: Slot, option: str) -> FloatArray:
    """One value per channel of the input."""
    if len(values) not in (1, slot.channels):
        raise UsageError(
            f"{len(values)} values for {slot.channels} channels",
            where=option,
            hint="give one, or one per channel, separated by commas",
        )
    return np.broadcast_to(np.asarray(values, np.float64), (slot.channels,))


def restores(model: Model, slot: Slot) -> bool:
    """Whether an output has the shape of the image: the model denoises, or restores otherwise."""
    flat = np.zeros((slot.batch, slot.channels, *slot.size), np.float32)
    try:
        found = model.runner()(one_run(model, slot, flat, 0))
    except DacconvError:
        return False
    return any(array.shape == slot.placed(flat).shape for array in found.values())


def _plain(slot: Slot, high: float, told: str, *, guessed: bool = False) -> Affinity:
    return Affinity(np.full(slot.channels, high), np.zeros(slot.channels), told, guessed)
