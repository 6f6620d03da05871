"""The inputs that two models are compared on: the user's own, images drawn for the model, noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dacconv.calibration.inputs.image_input import ImageInput, find_image_input, make_feeds
from dacconv.calibration.inputs.images import Family, clouds, dead_leaves, noisy
from dacconv.calibration.inputs.photographs import photographs, suit
from dacconv.calibration.inputs.pixels import InputOptions, is_image_to_image, pixel_scale
from dacconv.calibration.inputs.scale_evidence import spread
from dacconv.calibration.inputs.user_data import UserData, feeds_maker, read_images
from dacconv.errors import DacconvError, UnsupportedError
from dacconv.formats.base import Feeds, Model, Runner
from dacconv.formats.inputs import FAMILIES, InputFamily, joined, seeded_inputs
from dacconv.graph.cost import layer_cost
from dacconv.graph.types import Array, FloatArray

FEWEST, MOST = 8, 64
"""How many samples are compared by default, at least and at most."""
EFFORT = 8e9
"""The multiply-adds of one model on all samples, where that is more than ``FEWEST``."""
DRAWN_SIZE = 256
"""The longest side of an image that is drawn; a larger one is a drawn one with larger pixels."""
DRAWN, NOISE = "drawn images", "inputs of noise"
CHUNK, CHUNK_BYTES = 32, 2**25
"""The most of the user's images that go into one run, and their bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class CheckInputs:
    """Inputs for two models to be compared on.

    ``kind`` says what they are (``DRAWN``, ``NOISE``, ``images of FILE``), ``family`` how they
    were made (empty for the user's own), and ``notes`` what was assumed. ``labels`` are the
    classes of each batch.
    """

    batches: Sequence[Feeds]
    kind: str
    family: str
    notes: tuple[str, ...] = ()
    labels: Sequence[Array] | None = None


def default_samples(model: Model) -> int:
    """How many samples a model is compared on: more of one that is cheap to run."""
    nodes = model.graph().nodes
    costs = [layer_cost(node.geometry) for node in nodes if node.geometry is not None]
    if any(cost.macs is None for cost in costs):
        return FEWEST
    macs = sum(cost.macs or 0 for cost in costs)
    batch = max([node.geometry.batch for node in nodes if node.geometry is not None], default=1)
    return int(min(MOST, max(FEWEST, EFFORT * batch // max(macs, 1))))


def model_inputs(
    model: Model, runner: Runner, samples: int, seed: int, options: InputOptions
) -> Iterator[CheckInputs]:
    """Inputs for a model without data, the most suitable first.

    Images drawn for the model where it takes images, then noise, one family after the other.
    """
    reason = ""
    try:
        yield drawn_inputs(model, runner, samples, seed, options)
    except UnsupportedError as error:
        reason = error.what
    for family in FAMILIES:
        yield noise_inputs(model, samples, seed, family, reason)


def noise_inputs(
    model: Model, samples: int, seed: int, family: InputFamily, reason: str = ""
) -> CheckInputs:
    """Seeded noise, for models that take no images; ``reason`` says why not."""
    batches = seeded_inputs(model.inputs(), samples, seed, family)
    return CheckInputs(batches, NOISE, family.name, (reason,) if reason else ())


def drawn_inputs(
    model: Model, runner: Runner, samples: int, seed: int, options: InputOptions
) -> CheckInputs:
    """Images drawn for a model at its own scale, of several kinds in turn.

    Where the scale is not certain, the images take turns at the plausible ones that are similar.

    Raises:
        UnsupportedError: the model takes no images, or the size of its input is not known.
    """
    image_input = find_image_input(model, options.layout)
    count = -(-samples // image_input.batch) * image_input.batch
    images = _draw(image_input, count, seed)
    scale = pixel_scale(model, image_input, options, images[: _enough(images)], runner)
    notes = [scale.description]
    restores = is_image_to_image(model, image_input, runner)
    if restores:
        images = noisy(images, seed)
        notes.append("the output is an image like the input: noise was added to be removed")
    others = [s.name for s in model.inputs() if s.name != image_input.spec.name]
    if others:
        notes.append(f"seeded noise was fed to the other inputs ({', '.join(others)})")
    scaled = scale.apply(images) if restores else spread(scale, images)
    step = image_input.batch
    batches = [
        make_feeds(model, image_input, scaled[i : i + step], seed + i)
        for i in range(0, count, step)
    ]
    return CheckInputs(batches, DRAWN, _kinds(image_input), tuple(notes))


def user_inputs(
    model: Model, runner: Runner, data: UserData | Path, options: InputOptions
) -> CheckInputs:
    """The user's images as the model takes them, several at a time where it takes any number.

    Raises:
        UsageError: the data cannot be read, or does not fit the model.
    """
    if isinstance(data, Path):
        data = read_images(data, model, options)
    feeds, description = feeds_maker(model, data, options)
    image_input, total = find_image_input(model, options.layout), len(data.images)
    step = image_input.batch
    if step == 1 and total > 1 and _takes_any_number(image_input, runner, feeds):
        room = CHUNK_BYTES // max(sum(array.nbytes for array in feeds(0, 1).values()), 1)
        step = max(1, min(CHUNK, room))
    elif step > 1:
        total = total // step * step
    if not total:
        raise UnsupportedError(
            f"{data.name} holds {len(data.images)} images, and the model takes {step} at a time"
        )
    starts = range(0, total, step)
    return CheckInputs(
        [feeds(i, step) for i in starts],
        f"images of {data.name}",
        "",
        (description,),
        None if data.labels is None else [data.labels[i : i + step] for i in starts],
    )


def _draw(image_input: ImageInput, count: int, seed: int) -> FloatArray:
    """Images ``(count, channels, *size)`` in 0..1, of the families in turn."""
    channels, size = image_input.channels, image_input.size
    factor = max(1, -(-max(size, default=1) // DRAWN_SIZE)) if len(size) == 2 else 1
    small = tuple(-(-n // factor) for n in size)
    families = _families(image_input)
    images = np.empty((count, channels, *small), np.float32)
    for index, draw in enumerate(families.values()):
        share = len(range(index, count, len(families)))
        if share:
            images[index :: len(families)] = draw(share, channels, small, seed + index)
    if factor > 1:
        images = images.repeat(factor, 2).repeat(factor, 3)[:, :, : size[0], : size[1]]
    return images


def _families(image_input: ImageInput) -> dict[str, Family]:
    families: dict[str, Family] = {"dead leaves": dead_leaves}
    if suit(image_input.channels, image_input.size):
        families["photographs"] = photographs
    return {**families, "clouds": clouds}


def _kinds(image_input: ImageInput) -> str:
    *others, last = _families(image_input)
    return f"{', '.join(others)} and {last}"


def _enough(images: FloatArray) -> int:
    """How many images show the scale of a model's input as well as all of them would."""
    return max(4, 2**17 // max(math.prod(images.shape[2:]), 1))


def _takes_any_number(
    image_input: ImageInput, runner: Runner, feeds: Callable[[int, int], Feeds]
) -> bool:
    """Whether the model gives the same outputs for two images at once as for one by one."""
    if image_input.spec.shape is not None and image_input.spec.shape[0] is None:
        return True
    alone = [feeds(0, 1), feeds(1, 1)]
    try:
        apart, together = [runner(each) for each in alone], runner(joined(alone))
    except DacconvError:
        return False
    return all(
        array.ndim > 0
        and len(array) == 2
        and all(len(each[name]) == 1 for each in apart)
        and np.allclose(array, np.concatenate([each[name] for each in apart]), 1e-3, 1e-5)
        for name, array in together.items()
    )
