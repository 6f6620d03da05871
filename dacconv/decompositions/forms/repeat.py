"""The input repeated r times along its channels, then a plain depthwise and a pointwise conv.

A graph repeats the whole input, by one concatenation; torch.nn has a layer that repeats every
channel in a row instead, for which filters and columns keep their order.
"""

from __future__ import annotations

from dataclasses import replace

from dacconv.decompositions.forms.base import Form, Reordering, by_rank, columns_by_rank
from dacconv.graph.types import Branches, Conv, Repeat


def lower(depthwise: Conv, pointwise: Conv, rank: int, reorder: Reordering) -> Branches:
    """Copies one after the other, filters and columns rank by rank."""
    filters = reorder(depthwise.weight, f"rows {rank}", lambda a: by_rank(a, rank))
    columns = reorder(pointwise.weight, f"columns {rank}", lambda a: columns_by_rank(a, rank))
    plain = replace(depthwise, weight=filters, groups=depthwise.out_channels)
    return ((Repeat(rank, len(depthwise.kernel)), plain, replace(pointwise, weight=columns)),)


def lower_interleaved(depthwise: Conv, pointwise: Conv, rank: int, reorder: Reordering) -> Branches:
    """Every channel repeated in a row, filters and columns as they are."""
    plain = replace(depthwise, groups=depthwise.out_channels)
    return ((Repeat(rank, len(depthwise.kernel), interleaved=True), plain, pointwise),)


FORM = Form("repeat", "input repeated r times, depthwise, pointwise", lower, needs="repeat")
INTERLEAVED = Form("repeat", FORM.title, lower_interleaved, needs="interleave")
