"""Channel: a conv with fewer channels, and a 1x1 conv after it or before it; and low rank.

Output side: Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and
Detection", arXiv 1505.06798, section 3.1: a k x k conv to r channels, then a 1x1 conv. Input side:
the same for the input channels, a 1x1 conv to r channels and then the k x k conv. Where the kernel
is 1x1, or the layer is linear, both are the singular value decomposition of its matrix (Denton et
al., arXiv 1404.0736, section 3.2): ``lowrank``. All parts stay dense.
"""

from __future__ import annotations

import math

from dacconv.decompositions.base import Method, in_place, pointwise, refuse_pointwise
from dacconv.decompositions.formula import Factors, Formula
from dacconv.graph.types import Branches, Conv, Layer


def output_side(conv: Conv, factors: Factors) -> Branches:
    """Stride, padding and dilation stay with the first conv, the bias with the 1x1 conv."""
    kernel, columns = factors
    return ((in_place(conv, kernel), pointwise(conv, columns, last=True)),)


def input_side(conv: Conv, factors: Factors) -> Branches:
    """The 1x1 conv has no bias, so that padding after it is exact; the rest is with the second."""
    rows, kernel = factors
    return ((pointwise(conv, rows), in_place(conv, kernel, last=True)),)


def refuse_wider(layer: Layer) -> str | None:
    """Why a layer is not linear and not a 1x1 conv that mixes channels; None where it is."""
    geometry = layer.geometry
    if math.prod(geometry.kernel) > 1:
        size = "x".join(map(str, geometry.kernel))
        return f"a {size} kernel: lowrank splits 1x1 convs and linear layers"
    if min(geometry.in_channels, geometry.out_channels) == geometry.groups:
        return "it has one channel per group: there is nothing to split"
    return None


METHODS = (
    Method(
        name="channel",
        title="k x k to fewer channels + pointwise",
        formula=Formula("riyx,or->oiyx"),
        refuses=refuse_pointwise,
        chain=output_side,
    ),
    Method(
        name="channel-input",
        title="pointwise to fewer channels + k x k",
        formula=Formula("ri,oryx->oiyx"),
        refuses=refuse_pointwise,
        chain=input_side,
    ),
    Method(
        name="lowrank",
        title="two pointwise convs or linear layers",
        formula=Formula("riyx,or->oiyx"),
        refuses=refuse_wider,
        chain=output_side,
    ),
)
