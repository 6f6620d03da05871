"""Labelled images for plain top-1: arrays in a .npz, brought into the form the model takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dacconv.calibration.inputs.image_input import ImageInput, find_image_input
from dacconv.calibration.inputs.pixels import InputOptions, pixel_scale
from dacconv.errors import UsageError
from dacconv.formats.base import Feeds, Model, Runner
from dacconv.graph.types import Array
from dacconv.support.arrays import ArrayFile, Header
from dacconv.sweeps.judges import Labelled, chunk, stackable

IMAGES = ("x", "images", "image", "data", "inputs", "input", "x_test", "arr_0")
LABELS = ("y", "labels", "label", "targets", "target", "y_test", "arr_1")
"""The names of arrays that are accepted, the first found wins; case does not matter."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledData:
    """Images and their classes; ``name`` says where they are from.

    Images are ``(count, channels, *size)``, ``(count, *size, channels)``, or ``(count, *size)``
    where there is one channel. Floats are fed as they are; bytes become 0..1 and are scaled as
    ``InputOptions`` say, or as the model's own first layers imply.
    """

    images: Array
    labels: Array
    name: str


def read_data(path: Path) -> LabelledData:
    """Read a ``.npz`` of images and labels.

    Raises:
        UsageError: not there, not readable, or without such arrays.
    """
    where = str(path)
    try:
        held = ArrayFile(path)
        if not held.zipped:
            raise UsageError("is one array; images and labels are needed", where=where)
        names = [_named(held.headers, wanted, where) for wanted in (IMAGES, LABELS)]
        images, labels = map(held.read, names)
    except FileNotFoundError as error:
        raise UsageError("no such file", where=where) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"not readable as .npz: {error}", where=where) from error
    return labelled(images, labels, path.name)


def labelled(images: Array, labels: Array, name: str) -> LabelledData:
    """Images and labels that fit together; UsageError where they do not."""
    if labels.ndim == 0 or labels.size != len(labels) or labels.dtype.kind not in "iu":
        raise UsageError("the labels are not one whole number per image", where=name)
    count = len(images) if images.ndim else 0
    if count != len(labels) or not count:
        raise UsageError(f"{count} images and {len(labels)} labels", where=name)
    if images.dtype.kind not in "fu":
        raise UsageError(f"images of {images.dtype} are neither floats nor bytes", where=name)
    return LabelledData(images, labels.reshape(-1), name)


def judge(
    model: Model, runner: Runner, data: LabelledData, options: InputOptions, largest: int
) -> Labelled:
    """The data as the model takes it, in runs of several images.

    Raises:
        UsageError: the images are not of the model's size, or it takes more than images.
    """
    image_input = find_image_input(model, options.layout)
    if len(model.inputs()) > 1:
        raise UsageError(
            "--data is for models with one input", hint="--eval FILE.py:FUNCTION runs any model"
        )
    images = _as_channels_first(data, image_input)
    scaled = images.dtype.kind == "f" and not options.has_scale
    if not scaled:
        top = np.float32(1 if images.dtype.kind == "f" else np.iinfo(images.dtype).max)
        if options.order == "bgr":
            images = images[:, ::-1]
        sample = images[:64].astype(np.float32) / top
        scale = pixel_scale(model, image_input, options, sample)

    def feeds(first: int, count: int) -> Feeds:
        part = images[first : first + count]
        ready = part if scaled else scale.apply(part.astype(np.float32) / top)
        return {image_input.spec.name: image_input.as_array(ready)}

    fixed = int((image_input.spec.shape or (0,))[0] or 0)
    free = not fixed or (fixed == 1 and stackable(runner, [feeds(0, 1), feeds(1, 1)]))
    step = chunk(largest) if free else fixed
    count = len(images) if free else len(images) // step * step
    starts = range(0, count, step)
    return Labelled([feeds(i, step) for i in starts], [data.labels[i : i + step] for i in starts])


def _named(arrays: Mapping[str, Header], names: tuple[str, ...], where: str) -> str:
    """The name of the array that has the first of ``names``; UsageError where there is none."""
    by_name = {key.lower(): key for key in arrays}
    for name in names:
        if name in by_name:
            return by_name[name]
    have = ", ".join(f"{n} {'x'.join(map(str, a.shape))}" for n, a in arrays.items()) or "nothing"
    what = "images" if names is IMAGES else "labels"
    raise UsageError(
        f"holds no {what}: it has {have}",
        where=where,
        hint=f"--data takes images as {', '.join(IMAGES)} and labels as {', '.join(LABELS)}",
    )


def _as_channels_first(data: LabelledData, image_input: ImageInput) -> Array:
    images, shape = data.images, data.images.shape[1:]
    if shape == (image_input.channels, *image_input.size):
        return images
    if shape == (*image_input.size, image_input.channels):
        return np.moveaxis(images, -1, 1)
    if shape == image_input.size and image_input.channels == 1:
        return images[:, None]
    wanted = "x".join(map(str, (image_input.channels, *image_input.size)))
    raise UsageError(
        f"holds images of {'x'.join(map(str, shape))}; the model takes {wanted}", where=data.name
    )
