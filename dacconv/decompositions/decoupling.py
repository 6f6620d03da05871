"""Network decoupling, pointwise first: a pointwise conv, then a grouped conv over each output.

Guo et al., "Network Decoupling: From Regular to Depthwise Separable Convolutions", arXiv
1808.05517, section 3.2: for every output channel the matrix of its filters ``(in, taps)`` is
truncated to rank r. The left singular vectors are r columns of the pointwise conv for that output
alone, and the right ones its r filters, whose responses are summed. Cost falls to r / in + r /
taps. (DAC is the other order, depthwise first.)
"""

from __future__ import annotations

from dacconv.decompositions.base import Method, in_place, pointwise, refuse_pointwise
from dacconv.decompositions.formula import Factors, Formula
from dacconv.graph.types import Branches, Conv


def chain(conv: Conv, factors: Factors) -> Branches:
    """Stride, padding, dilation and bias stay with the grouped conv.

    Output channel o of the layer reads the pointwise outputs ``o*r`` to ``o*r + r-1``. The
    pointwise conv has no bias, so that padding after it is exact.
    """
    columns, filters = factors  # (g, o, i, r) and (g, o, r, y, x)
    groups, out, channels, rank = columns.shape
    rows = columns.transpose(0, 1, 3, 2).reshape(groups, out * rank, channels)
    grouped = filters.reshape(groups * out, 1, rank, *filters.shape[3:])
    return ((pointwise(conv, rows), in_place(conv, grouped, last=True)),)


METHOD = Method(
    name="decoupling",
    title="pointwise + grouped (network decoupling)",
    formula=Formula("oir,oryx->oiyx"),
    refuses=refuse_pointwise,
    chain=chain,
)
