"""r plain depthwise convs of the same input, concatenated into one pointwise conv."""

from __future__ import annotations

from dataclasses import replace

from dacconv.decompositions.forms import repeat
from dacconv.decompositions.forms.base import Branches, Form, Spelled, plain
from dacconv.graph.types import Array, Conv, Geometry


def lower(depthwise: Conv, pointwise: Conv, rank: int, spelled: Spelled) -> Branches:
    """The form ``repeat``, each copy convolved on its own."""
    ((first, last),) = repeat.lower(depthwise, pointwise, rank, spelled)
    return ((replace(first, apart=True), last),)


def pieces(conv: Conv, spelled: Spelled) -> tuple[Conv, ...]:
    """The convs whose joined results are what a conv with ``apart`` computes."""
    count = conv.copies
    size = conv.out_channels // count

    def piece(array: Array, index: int) -> Array:
        rows = slice(index * size, (index + 1) * size)
        return spelled(array, f"rows {rows.start} to {rows.stop}", lambda a: a[rows])

    return tuple(
        replace(
            conv,
            weight=piece(conv.weight, index),
            bias=None if conv.bias is None else piece(conv.bias, index),
            groups=conv.groups // count,
            copies=1,
            apart=False,
        )
        for index in range(count)
    )


def convs(depthwise: Geometry, pointwise: Geometry, rank: int) -> tuple[Geometry, ...]:
    """r plain depthwise convs before the pointwise one."""
    return *(plain(depthwise),) * rank, pointwise


FORM = Form(
    "concat",
    "r x depthwise, concatenated, pointwise",
    lower,
    operators=lambda rank: rank + 2,
    convs=convs,
    around=lambda rank, read, middle, written: 2 * middle,
)
