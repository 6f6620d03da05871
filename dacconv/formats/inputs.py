"""Seeded inputs for a model, and whether it can be run at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dacconv.formats.base import Feeds, Model
from dacconv.graph.types import Array, ValueSpec

LARGEST_INPUT = 1 << 31
"""The most elements of an input that are made to run a model."""


@dataclass(frozen=True, slots=True)
class InputFamily:
    """How the values of floating-point inputs are drawn: uniform in 0..high, or normal."""

    name: str
    high: float | None = None

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        """Values of that shape, float64."""
        if self.high is None:
            return rng.standard_normal(shape)
        return rng.uniform(0.0, self.high, shape)


NORMAL = InputFamily("standard normal")
FAMILIES = (
    NORMAL,
    InputFamily("uniform in 0..1", 1.0),
    InputFamily("uniform in 0..0.1", 0.1),
    InputFamily("uniform in 0..0.01", 0.01),
)
"""What a model is run on: the first family on which its outputs are finite."""


def reason_not_runnable(model: Model) -> str | None:
    """The reason why a model cannot be run here; None if it can."""
    if model.runnable:
        return model.runnable
    for spec in model.inputs():
        if spec.shape is None or any(size is None for size in spec.shape[1:]):
            return (
                f"the model does not fix the size of input '{spec.name}' ({sizes_of(spec)}): "
                "give --input-shape"
            )
        if math.prod(size or 1 for size in spec.shape) > LARGEST_INPUT:
            return (
                f"the model's input '{spec.name}' is {sizes_of(spec)}: that is more than the "
                f"{LARGEST_INPUT:,} elements that dacconv makes"
            )
    return None


def make_inputs(
    specs: Sequence[ValueSpec], rng: np.random.Generator, family: InputFamily = NORMAL
) -> dict[str, Array]:
    """One seeded set of inputs, a free batch axis taken as 1."""
    feeds: dict[str, Array] = {}
    for spec in specs:
        shape = tuple(size or 1 for size in spec.shape or ())
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "b":
            feeds[spec.name] = rng.integers(0, 2, shape).astype(bool)
        elif dtype.kind in "iu":
            high = 256 if dtype == np.uint8 else 2
            feeds[spec.name] = rng.integers(0, high, shape).astype(dtype)
        else:
            feeds[spec.name] = family.draw(shape, rng).astype(dtype)
    return feeds


def seeded_inputs(
    specs: Sequence[ValueSpec], samples: int, seed: int, family: InputFamily = NORMAL
) -> list[Feeds]:
    """Sets of inputs with ``samples`` samples in all, a free batch axis taken as 1."""
    rng = np.random.default_rng(seed)
    feeds: list[Feeds] = [make_inputs(specs, rng, family)]
    while len(feeds) * batch_of(feeds[0]) < samples:
        feeds.append(make_inputs(specs, rng, family))
    return feeds


def batch_of(feeds: Feeds) -> int:
    """The number of samples in a set of inputs.

    That is the first axis of the first input that has more than one axis: an input with one axis
    may be a vector for all samples. 1 where no input has more.
    """
    sizes = (int(array.shape[0]) for array in feeds.values() if array.ndim > 1)
    return next(sizes, 1)


def count_samples(batches: Sequence[Feeds]) -> int:
    """The number of samples in some batches."""
    return sum(map(batch_of, batches))


def joined(feeds: Sequence[Feeds]) -> Feeds:
    """Several sets of inputs as one, along their first axes."""
    if len(feeds) == 1:
        return feeds[0]
    return {name: np.concatenate([each[name] for each in feeds]) for name in feeds[0]}


def sizes_of(spec: ValueSpec) -> str:
    """The shape of a value as text, such as ``1x3x?x?``."""
    if spec.shape is None:
        return "?"
    return "x".join("?" if size is None else str(size) for size in spec.shape)
