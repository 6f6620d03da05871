"""The graph that a network would have with other widths: the width multiplier of MobileNet.

Howard et al., arXiv 1704.04861, section 3.3: with a multiplier a every number of channels is times
a, except those of the input and of the output, so that the MACs shrink by about a squared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dacconv.graph.types import LAYER_OPS, Geometry, Graph, Node


@dataclass(frozen=True, slots=True)
class Totals:
    """The costs of a whole network; ``macs`` is None where the sizes are not known."""

    macs: int | None
    params: int


@dataclass(frozen=True, slots=True)
class WhatIfRow:
    """A layer as it is and as it would be; geometries are None where they are not known."""

    name: str
    before: Geometry | None
    after: Geometry | None
    macs: tuple[int | None, int | None]
    params: tuple[int, int]


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What a network would cost with other widths or another resolution.

    ``width`` is the multiplier, 1 where it stays; ``resolution`` the height and width of the
    images, None where it stays. ``before`` and ``after`` include the parameters of BatchNorm.
    ``notes`` say what has to be done for such a network and what was verified.
    """

    width: float
    resolution: tuple[int, ...] | None
    rows: tuple[WhatIfRow, ...]
    before: Totals
    after: Totals
    notes: tuple[str, ...]


def with_width(graph: Graph, width: float) -> Graph:
    """The graph with every number of channels times ``width``, but those of inputs and outputs.

    Channels are rounded to whole numbers, to multiples of the groups where a conv has such. The
    shapes of values that are not layers stay as they were.
    """
    if width == 1:
        return graph
    from_input = _reached_from_inputs(graph)
    to_output = _reaching_outputs(graph)
    unit = math.lcm(*(g.groups for g in _geometries(graph) if _is_grouped(g)))

    def scaled(channels: int) -> int:
        return max(unit, round(channels * width / unit) * unit)

    def resized(node: Node) -> Node:
        g = node.geometry
        if node.op not in LAYER_OPS or g is None:
            kept = not node.params or node.name in from_input or node.name in to_output
            return node if kept else replace(node, params=round(node.params * width))
        into = g.in_channels if node.name in from_input else scaled(g.in_channels)
        out = g.out_channels if node.name in to_output else scaled(g.out_channels)
        groups = g.groups
        if g.groups == g.in_channels > 1:  # depthwise, with as many outputs for each input
            groups, out = into, into * (g.out_channels // g.in_channels)
        new = replace(g, in_channels=into, out_channels=out, groups=groups)
        weights = out * (into // groups) * math.prod(g.kernel)
        return replace(node, geometry=new, params=weights + (out if g.bias else 0))

    return replace(graph, nodes=tuple(map(resized, graph.nodes)))


def _geometries(graph: Graph) -> list[Geometry]:
    return [node.geometry for node in graph.nodes if node.geometry is not None]


def _is_grouped(g: Geometry) -> bool:
    return 1 < g.groups < g.in_channels


def _reached_from_inputs(graph: Graph) -> frozenset[str]:
    """The nodes that an input of the network reaches without a layer between them."""
    values = {spec.name for spec in graph.inputs}
    names: set[str] = set()
    for node in graph.nodes:
        if values.intersection(node.inputs):
            names.add(node.name)
            if node.op not in LAYER_OPS:
                values.add(node.output)
    return frozenset(names)


def _reaching_outputs(graph: Graph) -> frozenset[str]:
    """The nodes that reach an output of the network without a layer between them."""
    values = set(graph.outputs)
    names: set[str] = set()
    for node in reversed(graph.nodes):
        if node.output in values:
            names.add(node.name)
            if node.op not in LAYER_OPS:
                values.update(node.inputs)
    return frozenset(names)


def compared(
    before: Mapping[str, tuple[Geometry | None, int | None, int]],
    after: Mapping[str, tuple[Geometry | None, int | None, int]],
) -> tuple[WhatIfRow, ...]:
    """The rows of two surveys, each a layer's geometry, MACs and parameters by its name."""
    rows: list[WhatIfRow] = []
    for name, (geometry, macs, params) in before.items():
        other, other_macs, other_params = after.get(name, (None, None, params))
        rows.append(WhatIfRow(name, geometry, other, (macs, other_macs), (params, other_params)))
    return tuple(rows)
