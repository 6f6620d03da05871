"""Spatial: a k x 1 conv, then a 1 x k conv; and the other order.

Jaderberg, Vedaldi and Zisserman, "Speeding up Convolutional Neural Networks with Low Rank
Expansions", arXiv 1405.3866, scheme 2, with the closed form of Tai et al., "Convolutional neural
networks with low-rank regularization", arXiv 1511.06067, section 3: the singular value
decomposition of the kernel as a matrix of the rows ``out * kx`` and the columns ``in * ky``.
Both convs stay dense: all of the multiply-adds that are saved are time.
"""

from __future__ import annotations

from dacconv.decompositions.base import Method, part, refuse_other_than_dense
from dacconv.decompositions.formula import Factors, Formula
from dacconv.graph.types import Branches, Conv, Layer


def refuses(layer: Layer) -> str | None:
    """A dense conv whose kernel is wider than 1 along two axes can be split."""
    reason = refuse_other_than_dense(layer)
    if reason is None and min(layer.geometry.kernel) == 1:
        size = "x".join(map(str, layer.geometry.kernel))
        return f"a {size} kernel: it has one axis only, so there is nothing to separate"
    return reason


def chain_vertical_first(conv: Conv, factors: Factors) -> Branches:
    """The conv along the first axis, then the one along the others, each with its own stride,
    padding and dilation; the bias is with the second."""
    first, second = factors  # (g, r, i, y) and (g, o, r, x)
    groups, rank, channels, height = first.shape
    out, others = second.shape[1], conv.kernel[1:]
    narrow = first.reshape(groups * rank, channels, height, *(1 for _ in others))
    wide = second.reshape(groups * out, rank, 1, *others)
    axes = range(len(conv.kernel))
    return (
        (
            part(conv, narrow, axes[:1], groups=groups),
            part(conv, wide, axes[1:], groups=groups, last=True),
        ),
    )


def chain_horizontal_first(conv: Conv, factors: Factors) -> Branches:
    """The same in the other order."""
    first, second = factors  # (g, r, i, x) and (g, o, r, y)
    groups, rank, channels, _ = first.shape
    out, others = second.shape[1], conv.kernel[1:]
    wide = first.reshape(groups * rank, channels, 1, *others)
    narrow = second.reshape(groups * out, rank, conv.kernel[0], *(1 for _ in others))
    axes = range(len(conv.kernel))
    return (
        (
            part(conv, wide, axes[1:], groups=groups),
            part(conv, narrow, axes[:1], groups=groups, last=True),
        ),
    )


METHODS = (
    Method(
        name="spatial",
        title="k x 1 + 1 x k",
        formula=Formula("riy,orx->oiyx"),
        refuses=refuses,
        chain=chain_vertical_first,
    ),
    Method(
        name="spatial-horizontal",
        title="1 x k + k x 1",
        formula=Formula("rix,ory->oiyx"),
        refuses=refuses,
        chain=chain_horizontal_first,
    ),
)
