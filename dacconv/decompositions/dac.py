"""DAC: a depthwise conv of multiplier r, then a pointwise conv.

Li et al., "Data-free Automatic Acceleration of Convolutional Networks", arXiv 1812.08374,
section 3.1.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from dacconv.calibration.least_squares import expand
from dacconv.decompositions.base import Branches, Factors, Method
from dacconv.decompositions.svd import ChannelSVD, channel_svd, left_factors
from dacconv.graph.types import Conv, FloatArray, Geometry


def full_rank(geometry: Geometry) -> int:
    """``min(prod(kernel), out)``: the number of singular values per input channel."""
    return min(math.prod(geometry.kernel), geometry.out_channels)


def parts(geometry: Geometry, rank: int) -> tuple[Geometry, ...]:
    """The depthwise conv (``rank`` filters per channel, no bias) and the pointwise conv."""
    middle, ones = geometry.in_channels * rank, (1,) * len(geometry.kernel)
    depthwise = replace(geometry, out_channels=middle, groups=geometry.in_channels, bias=False)
    pointwise = replace(
        geometry,
        in_channels=middle,
        kernel=ones,
        stride=ones,
        dilation=ones,
        input_size=geometry.output_size,
    )
    return depthwise, pointwise


def factor(weight: FloatArray, svd: ChannelSVD, rank: int) -> Factors:
    """Split ``(out, in, *k)`` into ``(in * r, 1, *k)`` and ``(out, in * r, 1, ..)``.

    Input channel i owns depthwise outputs ``i*r .. i*r + r-1``, and the pointwise columns
    are in the same order. The filters are unit vectors; the singular values lie in the
    pointwise weights.
    """
    out, channels, *kernel = weight.shape
    rank = min(rank, svd.full_rank)
    filters = svd.right[:, :rank]
    pointwise = left_factors(weight, filters).transpose(1, 0, 2)
    return Factors(
        (
            np.ascontiguousarray(filters).reshape(channels * rank, 1, *kernel),
            np.ascontiguousarray(pointwise).reshape(out, channels * rank, *(1 for _ in kernel)),
        ),
        svd.relative_error(rank),
    )


def assemble(conv: Conv, factors: Factors) -> Branches:
    """Stride, padding and dilation stay with the depthwise, the bias with the pointwise."""
    depthwise, pointwise = factors.arrays
    ones = (1,) * len(conv.kernel)
    spatial = replace(conv, weight=depthwise, bias=None, groups=conv.in_channels)
    mixing = Conv(
        weight=pointwise,
        bias=conv.bias,
        stride=ones,
        padding=((0, 0),) * len(ones),
        dilation=ones,
    )
    return ((spatial, mixing),)


def recompose(branches: Branches) -> Conv:
    """The kernel of rank r that the depthwise and the pointwise conv make together."""
    ((depthwise, pointwise),) = branches
    out, channels, kernel = pointwise.out_channels, depthwise.in_channels, depthwise.kernel
    filters = depthwise.weight.astype(np.float64).reshape(channels, -1, math.prod(kernel))
    columns = pointwise.weight.astype(np.float64).reshape(out, channels, -1)
    weight = expand(filters, columns).reshape(out, channels, *kernel)
    made = np.asarray(weight, pointwise.weight.dtype)
    return replace(depthwise, weight=made, bias=pointwise.bias, groups=1)


METHOD = Method(
    name="dac",
    title="depthwise + pointwise (DAC)",
    full_rank=full_rank,
    parts=parts,
    factor=factor,
    assemble=assemble,
    recompose=recompose,
    decompose=channel_svd,
)
