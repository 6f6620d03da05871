"""The test networks, and an exact split of every conv by a full-rank SVD."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from plain_nets import DnCNN, ResNet20, SmallNet, VGG16Probe, randomized, small_net

from dacconv.decompositions.forms import Reordering, lower
from dacconv.graph.types import Conv, Graph, Rewrite

__all__ = [
    "DnCNN", "ResNet20", "SmallNet", "VGG16Probe", "eligible", "randomized", "relative",
    "small_net", "split", "split_all",
]  # fmt: skip


def split(conv: Conv) -> tuple[tuple[Conv, ...], ...]:
    """One chain of depthwise and pointwise conv that computes the same: SVD at full rank."""
    out, channels, *kernel = conv.weight.shape
    flat = conv.weight.astype(np.float64).transpose(1, 0, 2, 3).reshape(channels, out, -1)
    u, s, vt = np.linalg.svd(flat, full_matrices=False)  # per input channel
    depthwise = vt.reshape(-1, 1, *kernel)
    pointwise = (u * s[:, None]).transpose(1, 0, 2).reshape(out, -1, 1, 1)
    first = replace(conv, weight=depthwise, bias=None, groups=channels)
    none = ((0, 0), (0, 0))
    return ((first, Conv(pointwise, conv.bias, (1, 1), none, (1, 1))),)


def eligible(graph: Graph) -> list[str]:
    return [
        n.name
        for n in graph.nodes
        if n.op == "conv" and n.skip is None and n.geometry is not None
        and n.geometry.groups == 1 and len(n.geometry.kernel) == 2
        and max(n.geometry.kernel) > 1
    ]  # fmt: skip


def split_all(model: Any, form: str = "multiplier") -> Any:
    """The model with every eligible conv split exactly; shared weights stay shared."""
    graph = model.graph()
    made: dict[str | None, tuple[tuple[Conv, ...], ...]] = {}
    edits, reorder = [], Reordering()
    for name in eligible(graph):
        node = graph.node(name)
        conv = model.conv(name)
        if node.weight not in made:
            made[node.weight] = split(conv)
        ((first, last),) = made[node.weight]
        first = replace(first, stride=conv.stride, padding=conv.padding, dilation=conv.dilation)
        last = replace(last, bias=conv.bias)
        constructs = model.constructs(2, own_layers=True)
        branches = lower(((first, last),), form, reorder, constructs)
        edits.append(Rewrite(name, node.inputs[0], branches, own_layers=True))
    return model.rewrite(edits)


def relative(expected: Any, actual: Any) -> float:
    a, b = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))
