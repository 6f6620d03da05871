"""The input repeated r times along its channels, then a plain depthwise and a pointwise conv."""

from __future__ import annotations

from dataclasses import replace

from dacconv.decompositions.forms.base import Branches, Form, Spelled, by_rank, columns_by_rank
from dacconv.graph.types import Conv, Geometry


def lower(depthwise: Conv, pointwise: Conv, rank: int, spelled: Spelled) -> Branches:
    """Copies one after the other, filters and columns rank by rank."""
    return (
        (
            replace(
                depthwise,
                weight=spelled(depthwise.weight, f"rows {rank}", lambda a: by_rank(a, rank)),
                groups=depthwise.out_channels,
                copies=rank,
            ),
            replace(
                pointwise,
                weight=spelled(
                    pointwise.weight, f"columns {rank}", lambda a: columns_by_rank(a, rank)
                ),
            ),
        ),
    )


def interleaved(depthwise: Conv) -> Conv:
    """The same with every channel repeated in a row: filters and columns keep their order."""
    return replace(
        depthwise,
        groups=depthwise.out_channels,
        copies=depthwise.out_channels // depthwise.groups,
        interleaved=True,
    )


def convs(depthwise: Geometry, pointwise: Geometry, rank: int) -> tuple[Geometry, ...]:
    """A plain depthwise conv of r times the channels."""
    wide = depthwise.out_channels
    return replace(depthwise, in_channels=wide, groups=wide), pointwise


FORM = Form(
    "repeat",
    "input repeated r times, depthwise, pointwise",
    lower,
    operators=lambda rank: 3,
    convs=convs,
    around=lambda rank, read, middle, written: (1 + rank) * read,
)
