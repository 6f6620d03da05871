"""r plain depthwise convs of the same input, concatenated into one pointwise conv."""

from __future__ import annotations

from dataclasses import replace

from dacconv.decompositions.forms.base import Form, Reordering, by_rank, columns_by_rank
from dacconv.graph.types import Array, Branches, Conv, Parallel


def lower(depthwise: Conv, pointwise: Conv, rank: int, reorder: Reordering) -> Branches:
    """Conv j takes every r-th filter from j on; the columns are ordered rank by rank."""
    filters = reorder(depthwise.weight, f"rows {rank}", lambda a: by_rank(a, rank))
    columns = reorder(pointwise.weight, f"columns {rank}", lambda a: columns_by_rank(a, rank))
    size = depthwise.in_channels

    def piece(j: int) -> Array:
        rows = slice(j * size, (j + 1) * size)
        return reorder(filters, f"rows {rows.start} to {rows.stop}", lambda a: a[rows])

    convs = tuple(replace(depthwise, weight=piece(j)) for j in range(rank))
    return ((Parallel(convs), replace(pointwise, weight=columns)),)


FORM = Form("concat", "r x depthwise, concatenated, pointwise", lower, needs="parallel")
