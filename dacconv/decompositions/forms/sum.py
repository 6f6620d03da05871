"""r chains of a plain depthwise and a pointwise conv, added.

ONNX Runtime merges the additions into the pointwise convs.
"""

from __future__ import annotations

from dataclasses import replace

from dacconv.decompositions.forms.base import Branches, Form, Spelled, plain
from dacconv.graph.types import Array, Conv, Geometry


def lower(depthwise: Conv, pointwise: Conv, rank: int, spelled: Spelled) -> Branches:
    """Branch j takes every r-th filter and column from j on; the first has the bias."""
    return tuple(
        (
            replace(depthwise, weight=_every(spelled, depthwise.weight, 0, j, rank)),
            replace(
                pointwise,
                weight=_every(spelled, pointwise.weight, 1, j, rank),
                bias=pointwise.bias if j == 0 else None,
            ),
        )
        for j in range(rank)
    )


def _every(spelled: Spelled, array: Array, axis: int, start: int, step: int) -> Array:
    where = (slice(None),) * axis + (slice(start, None, step),)
    return spelled(array, f"{axis}: {start} of {step}", lambda a: a[where])


def convs(depthwise: Geometry, pointwise: Geometry, rank: int) -> tuple[Geometry, ...]:
    """r chains, of which the first has the bias."""
    first, last = plain(depthwise), replace(pointwise, in_channels=depthwise.in_channels)
    return first, last, *(first, replace(last, bias=False)) * (rank - 1)


FORM = Form(
    "sum",
    "r x (depthwise, pointwise), added",
    lower,
    operators=lambda rank: 3 * rank - 1,
    convs=convs,
    around=lambda rank, read, middle, written: 3 * (rank - 1) * written,
)
