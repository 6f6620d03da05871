"""Spatial: a k x 1 conv, then a 1 x k conv; and the other order.

Jaderberg, Vedaldi and Zisserman, "Speeding up Convolutional Neural Networks with Low Rank
Expansions", arXiv 1405.3866, scheme 2, with the closed form of Tai et al., "Convolutional neural
networks with low-rank regularization", arXiv 1511.06067, section 3: the singular value
decomposition of the kernel as a matrix of the rows ``out * kx`` and the columns ``in * ky``.
Both convs stay dense: all of the multiply-adds that are saved are time.
"""

from __future__ import annotations

import math
from functools import partial

from dacconv.decompositions.base import Method, part, refuse_pointwise
from dacconv.decompositions.formula import Factors, Formula
from dacconv.graph.types import Branches, Conv, Layer


def refuses(layer: Layer) -> str | None:
    """Why a kernel cannot be separated along its first axis; None where it can be."""
    reason = refuse_pointwise(layer)
    first, *others = layer.geometry.kernel or (1,)
    if reason is None and (first == 1 or math.prod(others) == 1):
        text = "x".join(map(str, layer.geometry.kernel))
        wide = sum(size > 1 for size in layer.geometry.kernel)
        reason = "it has one axis only" if wide == 1 else "its first axis is 1 wide"
        return f"a {text} kernel: {reason}, so there is nothing to separate"
    return reason


def separate(conv: Conv, factors: Factors, *, vertical_first: bool) -> Branches:
    """A conv along the first axis and one along the others, or the other way round, each with its
    own stride, padding and dilation; the bias is with the second."""
    first, second = factors  # (g, r, i, taps) and (g, o, r, taps)
    groups, rank, channels, _ = first.shape
    axes = range(len(conv.kernel))
    own, others = (axes[:1], axes[1:]) if vertical_first else (axes[1:], axes[:1])
    along = first.reshape(groups * rank, channels, *_kernel_along(own, conv))
    across = second.reshape(groups * second.shape[1], rank, *_kernel_along(others, conv))
    return (
        (
            part(conv, along, own, groups=groups),
            part(conv, across, others, groups=groups, last=True),
        ),
    )


def _kernel_along(axes: range, conv: Conv) -> tuple[int, ...]:
    """The size of the kernel on some axes, and 1 on the rest."""
    return tuple(size if axis in axes else 1 for axis, size in enumerate(conv.kernel))


METHODS = (
    Method(
        name="spatial",
        title="k x 1 + 1 x k",
        formula=Formula("riy,orx->oiyx"),
        refuses=refuses,
        chain=partial(separate, vertical_first=True),
    ),
    Method(
        name="spatial-horizontal",
        title="1 x k + k x 1",
        formula=Formula("rix,ory->oiyx"),
        refuses=refuses,
        chain=partial(separate, vertical_first=False),
    ),
)
