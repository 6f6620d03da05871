"""One depthwise conv of multiplier r, as the paper draws it: two operators.

Runtimes have fast kernels for a multiplier of 1 only: at a higher one ONNX Runtime and torch
fall back to a generic grouped conv.
"""

from __future__ import annotations

from dacconv.decompositions.forms.base import Form, Reordering
from dacconv.graph.types import Branches, Conv


def lower(depthwise: Conv, pointwise: Conv, rank: int, reorder: Reordering) -> Branches:
    """The chain as it is."""
    return ((depthwise, pointwise),)


FORM = Form("multiplier", "depthwise of multiplier r, pointwise", lower)
