"""The inputs that a model is calibrated on, and those that are drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dacconv.calibration.inputs.images import clouds, dead_leaves, noisy
from dacconv.calibration.inputs.pixels import InputOptions, pixel_scale, restores
from dacconv.calibration.inputs.scale import BYTES, Affinity
from dacconv.calibration.inputs.slots import Slot, affordable, feeder, find_slot, halves, samples
from dacconv.formats.base import Feeds, Model
from dacconv.graph.types import FloatArray

IMAGES = {"synthetic": 64, "distilled": 256, "real": 500}
"""How many inputs by default."""


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Calibration inputs: two halves to fit and to judge by, and a second family to judge by.

    ``images`` are the same as arrays ``(count, channels, *size)``, scaled. ``told`` says in
    words what they are; ``notes`` what was assumed about them. ``slot`` is the input that takes
    the images.
    """

    kind: str
    told: str
    fitted: tuple[Feeds, ...]
    held: tuple[Feeds, ...]
    second: tuple[Feeds, ...]
    images: FloatArray
    slot: Slot
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many samples there are to fit and to judge by, the second family not counted."""
        return samples((*self.fitted, *self.held))


def drawn(slot: Slot, count: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Dead leaves to fit to, and clouds to judge by, a quarter as many."""
    leaves = dead_leaves(count, slot.channels, slot.size, seed)
    fewest = max(8, slot.batch, count // 4)
    return leaves, clouds(fewest, slot.channels, slot.size, seed + 1)


def synthetic(model: Model, options: InputOptions, seed: int, most: int) -> tuple[Inputs, Affinity]:
    """At most ``most`` dead leaves to fit to and to judge by, clouds as the second family.

    Raises:
        UnsupportedError: the model takes no image, or its size is not known.
    """
    slot = find_slot(model, options.layout)
    count = affordable(model, slot, most)
    leaves, second = drawn(slot, count, seed)
    scale = pixel_scale(model, slot, options, leaves)
    noted = [scale.told]
    noise = restores(model, slot)
    if noise:
        leaves, second = noisy(leaves, seed + 2), noisy(second, seed + 3)
        noted.append("the output is an image like the input: noise was added, as to be removed")
    if len(slot.size) != 2:
        noted.append("the input is no image: signals with a 1/f spectrum and steps were assumed")
    others = [s.name for s in model.inputs() if s.name != slot.spec.name]
    if others:
        noted.append(f"seeded noise was fed to the other inputs ({', '.join(others)})")
    feed = feeder(model, slot, seed)
    scaled = scale.apply(leaves)
    fitted, held = halves(feed(scaled))
    judges = [scale.apply(second)]
    if scale.guessed and not noise:
        judges.append(np.asarray(BYTES * (second - second.mean()), np.float32))
        noted.append("what is wrong for pixels of -128..128 was not taken either")
    told = f"{count} synthetic images (dead leaves), judged by a held-out half and by clouds"
    family = tuple(feed(np.concatenate(judges)))
    made = Inputs("synthetic", told, fitted, held, family, scaled, slot, tuple(noted))
    return made, scale


def replaced(inputs: Inputs, images: FloatArray, model: Model, seed: int) -> Inputs:
    """The inputs with distilled images in the place of the drawn ones.

    What they were distilled from becomes the second family.
    """
    fitted, held = halves(feeder(model, inputs.slot, seed)(images))
    told = f"{len(images)} images distilled from BatchNorm statistics, judged by a held-out half"
    return replace(
        inputs,
        kind="distilled",
        told=f"{told} and by the images that they began as",
        fitted=fitted,
        held=held,
        second=inputs.held[: max(1, len(inputs.held) // 2)],
        images=images,
    )


def beside(inputs: Inputs, images: FloatArray, what: str, model: Model, seed: int) -> Inputs:
    """The inputs with more images to fit to, which judge nothing."""
    more = feeder(model, inputs.slot, seed)(images)
    told = f"{inputs.told}, and {len(images)} {what} ones"
    return replace(inputs, told=told, fitted=(*inputs.fitted, *more))
