"""Where a model takes its images, and how images become the batches that it runs on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dacconv.errors import DacconvError, UnsupportedError
from dacconv.formats.base import Feeds, Model
from dacconv.formats.inputs import make_inputs
from dacconv.graph.types import Array, FloatArray, ValueSpec

MEMORY = 2**30
"""Bytes that the live activations of all calibration inputs may take, about."""
FEWEST = 8
"""Samples that are drawn or read at least, however little memory there is."""
BATCH, BATCH_BYTES = 16, 2**27
"""Samples of one run at most, and the bytes of their live activations, about."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The input that takes the images: its spec, and where its channels and sizes are."""

    spec: ValueSpec
    channels: int
    size: tuple[int, ...]
    last: bool

    @property
    def batch(self) -> int:
        """The samples that one run takes; 1 where that is free."""
        return int((self.spec.shape or (1,))[0] or 1)

    @property
    def fewest(self) -> int:
        """The samples below which there are no two halves worth the name."""
        return 4 if self.batch == 1 else 2 * self.batch

    def placed(self, images: FloatArray) -> Array:
        """``(batch, channels, *size)`` in the layout and dtype of the input."""
        made = np.moveaxis(images, 1, -1) if self.last else images
        dtype = np.dtype(self.spec.dtype)
        if dtype.kind in "iu":
            made = np.clip(np.rint(made), np.iinfo(dtype).min, np.iinfo(dtype).max)
        return np.ascontiguousarray(made.astype(dtype))

    def jittered(self, feeds: Feeds, rng: np.random.Generator) -> Feeds:
        """The feeds with every image mirrored or not, and moved around by up to an eighth."""
        array = feeds[self.spec.name]
        axes = tuple(range(array.ndim - 2)) if self.last else tuple(range(1, array.ndim - 1))
        made = np.empty_like(array)
        for index, image in enumerate(array):
            turned = np.flip(image, axes[-1]) if rng.integers(2) else image
            moves = [int(rng.integers(-(n // 8), n // 8 + 1)) for n in self.size]
            made[index] = np.roll(turned, moves, axes)
        return {**feeds, self.spec.name: made}


def samples(batches: Sequence[Feeds]) -> int:
    """How many samples some batches hold."""
    return sum(len(next(iter(feeds.values()))) for feeds in batches)


def find_slot(model: Model, layout: str | None) -> Slot:
    """The image-like input of a model.

    Raises:
        UnsupportedError: it has none, or its size is not known.
    """
    specs = [s for s in model.inputs() if s.dtype.startswith("float") or s.dtype == "uint8"]
    found = [s for s in specs if s.shape is None or len(s.shape) in (3, 4, 5)]
    if not found:
        raise UnsupportedError("no input of the model looks like an image or a signal")
    spec = found[0]
    shape = spec.shape
    if shape is None or any(size is None for size in shape[1:]):
        raise UnsupportedError(
            f"the size of input '{spec.name}' is not known",
            hint=f"give it with --input-shape {spec.name}:1,3,224,224 (its real size)",
        )
    sizes = [int(size) for size in shape[1:] if size is not None]
    last = layout == "nhwc" or (
        layout is None and len(sizes) == 3 and sizes[0] > 4 >= sizes[-1] and sizes[0] != sizes[-1]
    )
    channels = sizes.pop() if last else sizes.pop(0)
    return Slot(spec, channels, tuple(sizes), last)


def affordable(model: Model, slot: Slot, wanted: int) -> int:
    """How many samples fit into ``MEMORY``; at least as many as can be halved."""
    return max(FEWEST, slot.fewest, min(wanted, MEMORY // max(_live(model), 1)))


def feeder(model: Model, slot: Slot, seed: int) -> Callable[[FloatArray], list[Feeds]]:
    """A function that cuts images into the batches that the model takes."""
    step, free = _batch(model, slot, seed)

    def feed(images: FloatArray) -> list[Feeds]:
        whole = len(images) if free else len(images) // step * step
        return [one_run(model, slot, images[i : i + step], seed + i) for i in range(0, whole, step)]

    return feed


def halves(batches: Sequence[Feeds]) -> tuple[tuple[Feeds, ...], tuple[Feeds, ...]]:
    """Every other batch; of one batch, every other sample."""
    if len(batches) > 1:
        return tuple(batches[::2]), tuple(batches[1::2])
    (only,) = batches
    return ({k: v[::2] for k, v in only.items()},), ({k: v[1::2] for k, v in only.items()},)


def one_run(model: Model, slot: Slot, images: FloatArray, seed: int) -> Feeds:
    """What the model is fed with: the images, and seeded noise for its other inputs."""
    made: dict[str, Array] = {}
    rng = np.random.default_rng(seed)
    for spec in model.inputs():
        if spec.name == slot.spec.name:
            made[spec.name] = slot.placed(images)
        else:
            made |= make_inputs([spec], rng)
    return made


def _batch(model: Model, slot: Slot, seed: int) -> tuple[int, bool]:
    """The samples that one run takes, and whether it may be fewer: the model's batch is free."""
    if slot.batch > 1 or len(model.inputs()) > 1:
        return slot.batch, False
    trial = np.zeros((2, slot.channels, *slot.size), np.float32)
    try:
        found = model.runner()(one_run(model, slot, trial, seed))
    except DacconvError:
        return 1, False
    free = all(array.ndim > 0 and array.shape[0] == 2 for array in found.values())
    return max(1, min(BATCH, BATCH_BYTES // max(_live(model), 1))) if free else 1, free


def _live(model: Model) -> int:
    """Bytes of a sample's live activations: two streams, a few values alive at a time."""
    sizes = sorted(
        math.prod(size or 1 for size in node.shape)
        for node in model.graph().nodes
        if node.shape is not None
    )
    return 4 * 2 * sum(sizes[-4:])
