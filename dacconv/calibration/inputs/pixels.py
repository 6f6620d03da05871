"""The scale from pixels in 0..1 to a model's input: from the options, or implied by the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dacconv.calibration.inputs.image_input import ImageInput, make_feeds
from dacconv.calibration.inputs.scale import PixelScale, scale_from_batchnorm, scale_from_biases
from dacconv.calibration.inputs.scale_evidence import likely_scales, with_alternatives
from dacconv.errors import DacconvError, UsageError
from dacconv.formats.base import Model, Runner
from dacconv.fusions.merged import merged_model
from dacconv.graph.types import FloatArray

OVERRIDE_HINT = "set it with --input-range, --input-mean and --input-std"


@dataclass(frozen=True, slots=True)
class InputOptions:
    """What the user states about the model's input.

    A pixel in 0..1 becomes ``(low + (high - low) * pixel - mean) / std`` per channel.
    ``layout`` is ``nchw`` or ``nhwc``, ``order`` is ``rgb`` or ``bgr``. What is None is inferred
    from the model. ``images`` is the number of calibration images.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    range: tuple[float, float] | None = None
    layout: str | None = None
    order: str = "rgb"
    images: int | None = None

    @property
    def has_scale(self) -> bool:
        """Whether the options say how pixels are scaled."""
        return not (self.mean is None and self.std is None and self.range is None)


def pixel_scale(
    model: Model,
    image_input: ImageInput,
    options: InputOptions,
    images: FloatArray,
    runner: Runner | None = None,
) -> PixelScale:
    """The scale of the options where they have one, otherwise the one that the model implies.

    ``images`` ``(count, channels, *size)`` in 0..1 are a sample of what the model will see.
    ``runner`` is that of the model, where there is one already.

    Raises:
        UsageError: a standard deviation of 0, or values that do not fit the channels.
    """
    if options.has_scale:
        low, high = options.range or (0.0, 1.0)
        mean = per_channel(options.mean or (0.0,), image_input, "--input-mean")
        std = per_channel(options.std or (1.0,), image_input, "--input-std")
        if not all(std):
            raise UsageError("a standard deviation is 0", where="--input-std")
        return PixelScale(
            (high - low) / std, (low - mean) / std, "the input is scaled as the options say"
        )
    if image_input.spec.dtype == "uint8":
        return _uniform(image_input, 255.0, "the input takes bytes: 0..255 was assumed")
    view = merged_model(model)
    scale = scale_from_batchnorm(
        model, image_input.spec.name, images, channels_last=image_input.channels_last
    ) or scale_from_biases(view, images)
    if scale is not None:
        return scale
    if image_input.channels in (1, 3) and len(image_input.size) == 2:
        restores = is_image_to_image(model, image_input, runner)
        ranked = likely_scales(model, view, image_input, images, runner, restores=restores)
        return with_alternatives(ranked, OVERRIDE_HINT)
    description = (
        f"the model does not show how its input is scaled: 0..1 was assumed; {OVERRIDE_HINT}"
    )
    return _uniform(image_input, 1.0, description, guessed=True)


def per_channel(values: Sequence[float], image_input: ImageInput, option: str) -> FloatArray:
    """One value per channel of the input, ``(channels,)``; UsageError for another count."""
    if len(values) not in (1, image_input.channels):
        raise UsageError(
            f"{len(values)} values for {image_input.channels} channels",
            where=option,
            hint="give one, or one per channel, separated by commas",
        )
    return np.broadcast_to(np.asarray(values, np.float64), (image_input.channels,))


def is_image_to_image(model: Model, image_input: ImageInput, runner: Runner | None = None) -> bool:
    """Whether an output has the shape of the image, as for denoising and other restoration."""
    flat = np.zeros((image_input.batch, image_input.channels, *image_input.size), np.float32)
    try:
        outputs = (runner or model.runner())(make_feeds(model, image_input, flat, 0))
    except DacconvError:
        return False
    return any(array.shape == image_input.as_array(flat).shape for array in outputs.values())


def _uniform(
    image_input: ImageInput, high: float, description: str, *, guessed: bool = False
) -> PixelScale:
    """The scale from 0..1 to 0..``high`` for all channels."""
    channels = image_input.channels
    return PixelScale(np.full(channels, high), np.zeros(channels), description, guessed)
