"""The calibration inputs of a model, and the synthetic images that can stand in for data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dacconv.calibration.inputs.image_input import (
    ImageInput,
    affordable_count,
    batch_maker,
    find_image_input,
    split_halves,
)
from dacconv.calibration.inputs.images import clouds, dead_leaves, noisy
from dacconv.calibration.inputs.photographs import photographs, suit
from dacconv.calibration.inputs.pixels import InputOptions, is_image_to_image, pixel_scale
from dacconv.calibration.inputs.scale import PixelScale
from dacconv.calibration.inputs.scale_evidence import spread
from dacconv.formats.base import Feeds, Model
from dacconv.formats.inputs import count_samples
from dacconv.graph.types import FloatArray

IMAGES = {"synthetic": 64, "distilled": 256, "real": 500}
"""The default number of calibration inputs of each kind."""


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Calibration inputs: batches to fit to, held-out batches, and a second family to judge by.

    ``others`` are further families to judge by: images at other scales that are plausible too.
    ``images`` holds the same images as one array ``(count, channels, *size)``, scaled for the
    model. ``description`` says where the inputs come from, ``notes`` list the assumptions that
    were made about them. ``image_input`` is the input of the model that takes the images.
    """

    kind: str
    description: str
    fitted: tuple[Feeds, ...]
    held: tuple[Feeds, ...]
    second: tuple[Feeds, ...]
    images: FloatArray
    image_input: ImageInput
    notes: tuple[str, ...] = ()
    others: tuple[tuple[Feeds, ...], ...] = ()

    @property
    def judges(self) -> tuple[tuple[Feeds, ...], ...]:
        """The families that judge beside the held-out half; what is fitted may harm none."""
        return tuple(family for family in (self.second, *self.others) if family)

    @property
    def count(self) -> int:
        """The number of samples in both halves; the second family is not counted."""
        return count_samples((*self.fitted, *self.held))


def draw_images(image_input: ImageInput, count: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Images to fit to, and a quarter as many cloud images to judge by.

    The images to fit to are dead leaves, and where the model takes pictures, every other one is
    a crop of a photograph.
    """
    channels, size = image_input.channels, image_input.size
    images = dead_leaves(count, channels, size, seed)
    if suit(channels, size):
        images[1::2] = photographs(count // 2, channels, size, seed)
    cloud_count = max(8, image_input.batch, count // 4)
    return images, clouds(cloud_count, channels, size, seed + 1)


def synthetic_inputs(
    model: Model, options: InputOptions, seed: int, most: int
) -> tuple[Inputs, PixelScale]:
    """At most ``most`` dead-leaves images in two halves, and clouds as the second family.

    Also returns the scale that was applied to the pixels.

    Raises:
        UnsupportedError: the model has no image input, or the size of that input is unknown.
    """
    image_input = find_image_input(model, options.layout)
    count = affordable_count(model, image_input, most)
    leaves, second = draw_images(image_input, count, seed)
    scale = pixel_scale(model, image_input, options, leaves)
    notes = [scale.description]
    noise = is_image_to_image(model, image_input)
    families = "dead leaves"
    if suit(image_input.channels, image_input.size):
        families += " and crops of photographs"
    if noise:
        leaves, second = noisy(leaves, seed + 2), noisy(second, seed + 3)
        notes.append("the output is an image like the input: noise was added to be removed")
    if len(image_input.size) != 2:
        notes.append("the input is not an image: signals with a 1/f spectrum and steps were used")
    others = [s.name for s in model.inputs() if s.name != image_input.spec.name]
    if others:
        notes.append(f"seeded noise was fed to the other inputs ({', '.join(others)})")
    feed = batch_maker(model, image_input, seed)
    scaled = scale.apply(leaves) if noise else spread(scale, leaves)
    fitted, held = split_halves(feed(scaled))
    elsewhere = tuple(tuple(feed(each.apply(second))) for each in scale.alternatives)
    if elsewhere:
        notes.append("factors that do worse at any of these scales were rejected")
    description = f"{count} synthetic images ({families}), judged by a held-out half and by clouds"
    inputs = Inputs(
        kind="synthetic",
        description=description,
        fitted=fitted,
        held=held,
        second=tuple(feed(scale.apply(second))),
        images=scaled,
        image_input=image_input,
        notes=tuple(notes),
        others=elsewhere,
    )
    return inputs, scale


def with_distilled_images(inputs: Inputs, images: FloatArray, model: Model, seed: int) -> Inputs:
    """The inputs with distilled images in place of the synthetic ones.

    The held-out synthetic images become the second family.
    """
    fitted, held = split_halves(batch_maker(model, inputs.image_input, seed)(images))
    return replace(
        inputs,
        kind="distilled",
        description=(
            f"{len(images)} images distilled from BatchNorm statistics, judged by a held-out half "
            "and by the images that the distillation started from"
        ),
        fitted=fitted,
        held=held,
        second=inputs.held[: max(1, len(inputs.held) // 2)],
        images=images,
    )


def with_more_images(
    inputs: Inputs, images: FloatArray, kind: str, model: Model, seed: int
) -> Inputs:
    """The inputs with more images of some kind to fit to, which are not used to judge."""
    more = batch_maker(model, inputs.image_input, seed)(images)
    description = f"{inputs.description}, and {len(images)} {kind} ones"
    return replace(inputs, description=description, fitted=(*inputs.fitted, *more))
