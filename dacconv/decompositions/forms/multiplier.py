"""One depthwise conv of multiplier r, as the paper draws it: two operators.

Runtimes have fast kernels for a multiplier of 1 only: at a higher one ONNX Runtime and torch
fall back to a generic grouped conv.
"""

from __future__ import annotations

from dacconv.decompositions.forms.base import Branches, Form, Spelled
from dacconv.graph.types import Conv, Geometry


def lower(depthwise: Conv, pointwise: Conv, rank: int, spelled: Spelled) -> Branches:
    """The chain as it is."""
    return ((depthwise, pointwise),)


def convs(depthwise: Geometry, pointwise: Geometry, rank: int) -> tuple[Geometry, ...]:
    """The two as they are."""
    return depthwise, pointwise


FORM = Form(
    "multiplier",
    "depthwise of multiplier r, pointwise",
    lower,
    operators=lambda rank: 2,
    convs=convs,
    around=lambda rank, read, middle, written: 0,
)
