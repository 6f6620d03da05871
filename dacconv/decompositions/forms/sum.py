"""r chains of a plain depthwise and a pointwise conv, added.

ONNX Runtime merges the additions into the pointwise convs.
"""

from __future__ import annotations

from dataclasses import replace

from dacconv.decompositions.forms.base import Form, Reordering
from dacconv.graph.types import Array, Branches, Conv


def lower(depthwise: Conv, pointwise: Conv, rank: int, reorder: Reordering) -> Branches:
    """Branch j takes every r-th filter and column from j on; the first has the bias."""
    return tuple(
        (
            replace(depthwise, weight=_every(reorder, depthwise.weight, 0, j, rank)),
            replace(
                pointwise,
                weight=_every(reorder, pointwise.weight, 1, j, rank),
                bias=pointwise.bias if j == 0 else None,
            ),
        )
        for j in range(rank)
    )


def _every(reorder: Reordering, array: Array, axis: int, start: int, step: int) -> Array:
    indices = (slice(None),) * axis + (slice(start, None, step),)
    return reorder(array, f"{axis}: {start} of {step}", lambda a: a[indices])


FORM = Form("sum", "r x (depthwise, pointwise), added", lower, needs="sum")
