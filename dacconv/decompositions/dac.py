"""DAC: a depthwise conv of multiplier r, then a pointwise conv.

Li et al., "Data-free Automatic Acceleration of Convolutional Networks", arXiv 1812.08374,
section 3.1: for every input channel the matrix of its filters ``(out, taps)`` is truncated to
rank r. The right singular vectors are r depthwise filters of that channel, the left ones times the
singular values columns of the pointwise conv. Cost falls to r / out + r / taps.
"""

from __future__ import annotations

import numpy as np

from dacconv.decompositions.base import Method, in_place, pointwise, refuse_pointwise
from dacconv.decompositions.forms import FORMS
from dacconv.decompositions.formula import Factors, Formula
from dacconv.decompositions.svd import ChannelSVD, channel_svd
from dacconv.graph.types import Branches, Conv, FloatArray


def chain(conv: Conv, factors: Factors) -> Branches:
    """Stride, padding and dilation stay with the depthwise conv, the bias with the pointwise one.

    Input channel i owns the depthwise outputs ``i*r`` to ``i*r + r-1``, and the pointwise columns
    are in the same order.
    """
    columns, filters = factors
    groups, out, channels, rank = columns.shape
    depthwise = filters.reshape(groups * channels, rank, 1, *filters.shape[3:])
    mixing = columns.reshape(groups, out, channels * rank)
    return ((in_place(conv, depthwise), pointwise(conv, mixing, last=True)),)


def decompose(kernel: FloatArray) -> ChannelSVD:
    """The decomposition of every input channel of every group; see ``channel_svd``."""
    parts = [channel_svd(group.reshape(*group.shape[:2], -1)) for group in kernel]
    if len(parts) == 1:
        return parts[0]
    return ChannelSVD(
        np.concatenate([svd.values for svd in parts]), np.concatenate([svd.right for svd in parts])
    )


METHOD = Method(
    name="dac",
    title="depthwise + pointwise (DAC)",
    formula=Formula("oir,iryx->oiyx"),
    refuses=refuse_pointwise,
    chain=chain,
    decompose=decompose,
    forms=tuple(FORMS),
)
