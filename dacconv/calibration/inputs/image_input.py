"""The input of a model that takes images, and batches of images for the model to run on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dacconv.errors import DacconvError, UnsupportedError
from dacconv.formats.base import Feeds, Model
from dacconv.formats.inputs import make_inputs
from dacconv.graph.types import Array, FloatArray, ValueSpec

MAX_BYTES = 2**30
"""Bytes that the live activations of all calibration inputs may take, approximately."""
MIN_SAMPLES = 8
"""The least number of samples to draw or to read, however little memory they fit into."""
MAX_BATCH, MAX_BATCH_BYTES = 16, 2**27
"""The most samples of one run, and the approximate bytes of their live activations."""


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The input that takes the images: its spec, its number of channels and its spatial size.

    ``channels_last`` tells whether its shape is ``(batch, *size, channels)``.
    """

    spec: ValueSpec
    channels: int
    size: tuple[int, ...]
    channels_last: bool

    @property
    def batch(self) -> int:
        """The number of samples that one run takes; 1 where the batch size is free."""
        return int((self.spec.shape or (1,))[0] or 1)

    @property
    def min_samples(self) -> int:
        """The least number of samples that can be split into two usable halves."""
        return 4 if self.batch == 1 else 2 * self.batch

    def as_array(self, images: FloatArray) -> Array:
        """Images ``(batch, channels, *size)`` in the layout and dtype of the input."""
        array = np.moveaxis(images, 1, -1) if self.channels_last else images
        dtype = np.dtype(self.spec.dtype)
        if dtype.kind in "iu":
            array = np.clip(np.rint(array), np.iinfo(dtype).min, np.iinfo(dtype).max)
        return np.ascontiguousarray(array.astype(dtype))

    def augmented(self, feeds: Feeds, rng: np.random.Generator) -> Feeds:
        """The feeds with each image mirrored at random and shifted by up to an eighth of its size.

        Shifts wrap around.
        """
        array = feeds[self.spec.name]
        axes = (
            tuple(range(array.ndim - 2)) if self.channels_last else tuple(range(1, array.ndim - 1))
        )
        augmented = np.empty_like(array)
        for index, image in enumerate(array):
            mirrored = np.flip(image, axes[-1]) if rng.integers(2) else image
            shifts = [int(rng.integers(-(n // 8), n // 8 + 1)) for n in self.size]
            augmented[index] = np.roll(mirrored, shifts, axes)
        return {**feeds, self.spec.name: augmented}


def find_image_input(model: Model, layout: str | None) -> ImageInput:
    """The first input of a model that looks like an image or a signal.

    Raises:
        UnsupportedError: the model has no such input, or its size is unknown.
    """
    specs = [s for s in model.inputs() if s.dtype.startswith("float") or s.dtype == "uint8"]
    spec = next((s for s in specs if s.shape is None or len(s.shape) in (3, 4, 5)), None)
    if spec is None:
        raise UnsupportedError("no input of the model looks like an image or a signal")
    shape = spec.shape
    if shape is None or any(size is None for size in shape[1:]):
        raise UnsupportedError(
            f"the size of input '{spec.name}' is not known",
            hint=f"give it with --input-shape {spec.name}:1,3,224,224 (its real size)",
        )
    sizes = [int(size) for size in shape[1:] if size is not None]
    channels_last = layout == "nhwc" or (
        layout is None and len(sizes) == 3 and sizes[0] > 4 >= sizes[-1] and sizes[0] != sizes[-1]
    )
    channels = sizes.pop() if channels_last else sizes.pop(0)
    return ImageInput(spec, channels, tuple(sizes), channels_last)


def affordable_count(model: Model, image_input: ImageInput, count: int) -> int:
    """As many of ``count`` samples as fit into ``MAX_BYTES``; enough for two halves at least."""
    affordable = MAX_BYTES // max(_live_bytes(model), 1)
    return max(MIN_SAMPLES, image_input.min_samples, min(count, affordable))


def batch_maker(
    model: Model, image_input: ImageInput, seed: int
) -> Callable[[FloatArray], list[Feeds]]:
    """A function that divides images into the batches that the model takes."""
    step, free = _batch_size(model, image_input, seed)

    def feed(images: FloatArray) -> list[Feeds]:
        whole = len(images) if free else len(images) // step * step
        return [
            make_feeds(model, image_input, images[i : i + step], seed + i)
            for i in range(0, whole, step)
        ]

    return feed


def split_halves(batches: Sequence[Feeds]) -> tuple[tuple[Feeds, ...], tuple[Feeds, ...]]:
    """Two halves of the batches, taken in turns; a single batch is halved sample by sample."""
    if len(batches) > 1:
        return tuple(batches[::2]), tuple(batches[1::2])
    (only,) = batches
    return ({k: v[::2] for k, v in only.items()},), ({k: v[1::2] for k, v in only.items()},)


def make_feeds(model: Model, image_input: ImageInput, images: FloatArray, seed: int) -> Feeds:
    """The images for the image input, and seeded noise for the model's other inputs."""
    feeds: dict[str, Array] = {}
    rng = np.random.default_rng(seed)
    for spec in model.inputs():
        if spec.name == image_input.spec.name:
            feeds[spec.name] = image_input.as_array(images)
        else:
            feeds |= make_inputs([spec], rng)
    return feeds


def _batch_size(model: Model, image_input: ImageInput, seed: int) -> tuple[int, bool]:
    """The number of samples of one run, and whether a run may have fewer (a free batch axis)."""
    if image_input.batch > 1 or len(model.inputs()) > 1:
        return image_input.batch, False
    trial = np.zeros((2, image_input.channels, *image_input.size), np.float32)
    try:
        outputs = model.runner()(make_feeds(model, image_input, trial, seed))
    except DacconvError:
        return 1, False
    if not all(array.ndim > 0 and array.shape[0] == 2 for array in outputs.values()):
        return 1, False
    return max(1, min(MAX_BATCH, MAX_BATCH_BYTES // max(_live_bytes(model), 1))), True


def _live_bytes(model: Model) -> int:
    """Bytes of the activations of one sample: two models side by side, a few live values each."""
    sizes = sorted(
        math.prod(size or 1 for size in node.shape)
        for node in model.graph().nodes
        if node.shape is not None
    )
    return 4 * 2 * sum(sizes[-4:])
