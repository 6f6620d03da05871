"""Judges compare the outputs of a variant with those of the original, or with labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dacconv.conversion.comparison import Comparison, agreement, scores_of, worst
from dacconv.errors import DacconvError
from dacconv.formats.base import Feeds, Model, Runner
from dacconv.formats.inputs import batch_of, joined
from dacconv.graph.types import Array

CHUNK = 64
"""The largest number of samples in one run, where the batch size is free."""
CHUNK_BYTES = 2**26
"""The approximate limit of the largest input of a layer in one run."""
PASS_BYTES = 2**28
"""The approximate limit of the live values of all runs that variants continue from."""

Outputs = Sequence[dict[str, Array]]


class Tally(Protocol):
    """The measures of one variant, collected batch by batch."""

    def add(self, start: int, outputs: Outputs) -> None:
        """Add the outputs for the batches from number ``start`` on."""
        ...

    def measures(self) -> dict[str, float | None]:
        """The measures by name."""
        ...


class Judge(Protocol):
    """Inputs, and the reference that the outputs for them are compared with."""

    @property
    def batches(self) -> Sequence[Feeds]:
        """The inputs."""
        ...

    def tally(self) -> Tally:
        """A new tally, for one variant."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class SameOutputs:
    """The original's outputs for some inputs, compared as in ``findings.Verification``."""

    batches: Sequence[Feeds]
    expected: Outputs

    def tally(self) -> Tally:
        """A tally of ``output_error`` and ``agreement``."""
        return _Compared(self.expected)


@dataclass(frozen=True, slots=True, eq=False)
class _Compared:
    expected: Outputs
    comparison: Comparison = field(default_factory=Comparison)

    def add(self, start: int, outputs: Outputs) -> None:
        for index, actual in enumerate(outputs, start):
            self.comparison.add(self.expected[index], actual)

    def measures(self) -> dict[str, float | None]:
        checks = self.comparison.outputs()
        return {
            "output_error": worst([check.relative_error for check in checks]),
            "agreement": agreement(checks),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Labelled inputs; the measure is the share whose top class is the label."""

    batches: Sequence[Feeds]
    labels: Sequence[Array]

    def tally(self) -> Tally:
        """A tally of ``top1``."""
        return _Top1(self.labels)


@dataclass(slots=True, eq=False)
class _Top1:
    labels: Sequence[Array]
    correct: int = 0
    count: int = 0

    def add(self, start: int, outputs: Outputs) -> None:
        for index, actual in enumerate(outputs, start):
            labels, scores = self.labels[index], scores_of(actual, len(self.labels[index]))
            self.correct += int((scores.argmax(1) == labels).sum())
            self.count += len(labels)

    def measures(self) -> dict[str, float | None]:
        return {"top1": self.correct / self.count if self.count else None}


def same_outputs(runner: Runner, inputs: Sequence[Feeds], largest: int) -> SameOutputs:
    """The judge by the original's outputs, in batches of several inputs if the model allows."""
    batches = stacked(runner, inputs, largest)
    return SameOutputs(batches, [runner(feeds) for feeds in batches])


def stacked(runner: Runner, feeds: Sequence[Feeds], largest: int) -> list[Feeds]:
    """The same samples in larger batches, if the model computes the same outputs for them.

    ``largest`` is the size in bytes of a layer's largest input, for one sample.
    """
    step = chunk(largest)
    if step < 2 or len(feeds) < 2 or not stackable(runner, feeds):
        return list(feeds)
    return [joined(feeds[i : i + step]) for i in range(0, len(feeds), step)]


def chunk(largest: int) -> int:
    """The number of samples in one run; ``largest`` as in :func:`stacked`."""
    return max(1, min(CHUNK, CHUNK_BYTES // max(largest, 1)))


def stackable(runner: Runner, feeds: Sequence[Feeds]) -> bool:
    """Whether the model computes the same for two samples in one batch as one by one."""
    if any(array.ndim < 2 or len(array) != 1 for array in feeds[0].values()):
        return False
    try:
        single, batch = [runner(feeds[0]), runner(feeds[1])], runner(joined(feeds[:2]))
    except DacconvError:
        return False
    for name, array in batch.items():
        rows = [one[name] for one in single]
        if any(row.ndim < 1 or len(row) != 1 for row in rows):
            return False
        if array.shape != (2, *rows[0].shape[1:]):
            return False
        if not np.allclose(array, np.concatenate(rows), rtol=1e-3, atol=1e-5):
            return False
    return True


def largest_input(model: Model) -> int:
    """Bytes of the largest input that a layer has, for one sample; 0 where sizes are unknown."""
    geometries = [node.geometry for node in model.graph().nodes if node.geometry is not None]
    return max(
        (
            g.in_channels * math.prod(g.input_size) * g.itemsize
            for g in geometries
            if g.input_size is not None
        ),
        default=0,
    )


def passes(batches: Sequence[Feeds], largest: int) -> list[slice]:
    """Slices of batches whose live values fit into memory together."""
    step = max(1, PASS_BYTES // max(2 * largest * batch_of(batches[0]), 1))
    return [slice(i, min(i + step, len(batches))) for i in range(0, len(batches), step)]
