"""What is written in the place of a layer: its convs, and the values moved around them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from dacconv.decompositions import METHODS
from dacconv.decompositions.base import placeholder
from dacconv.decompositions.forms import AUTO, Reordering, lower
from dacconv.graph import roofline
from dacconv.graph.cost import Cost, layer_cost, shared_cost, total
from dacconv.graph.layers import survey
from dacconv.graph.roofline import Roofline
from dacconv.graph.types import (
    Choice,
    Conv,
    Geometry,
    Graph,
    Layer,
    Node,
    Parallel,
    Rank,
    Repeat,
)

ELEMENTWISE_KINDS = frozenset(
    {"abs", "add", "celu", "clamp", "clip", "div", "elu", "exp", "gelu", "hard_sigmoid",
     "hard_swish", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "leakyrelu", "maximum",
     "minimum", "mish", "mul", "neg", "pow", "prelu", "relu", "relu6", "selu", "sigmoid", "silu",
     "softplus", "softsign", "sqrt", "square", "sub", "swish", "tanh", "threshold",
     "thresholdedrelu"}
)  # fmt: skip
"""Operators that compute value by value, besides those that are ``affine`` or ``add``."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one call site of a split layer computes, as it is written.

    ``convs`` are the geometries of the convs in order. ``copied`` is the number of values that are
    read and written by operators that copy or concatenate, ``added`` that of additions; None where
    sizes are not known. ``copies`` and ``additions`` count these operators.
    """

    convs: tuple[Geometry, ...]
    copied: int | None = 0
    copies: int = 0
    added: int | None = 0
    additions: int = 0

    @property
    def moved(self) -> int | None:
        """The number of values that are read and written besides the convs."""
        known = self.copied is not None and self.added is not None
        return (self.copied or 0) + (self.added or 0) if known else None

    @property
    def operators(self) -> int:
        """The number of operators in the graph."""
        return len(self.convs) + self.copies + self.additions


@lru_cache(maxsize=4096)
def split_work(geometry: Geometry, method: str, rank: Rank, form: str) -> Work:
    """The work of a layer of that geometry, split by ``method`` to ``rank``, in ``form``.

    It is read off the chain that the method builds for a conv of that geometry without data.
    """
    conv = _conv_without_data(geometry)
    shapes = METHODS[method].formula.shapes(geometry, rank)
    factors = tuple(placeholder(shape) for shape in shapes)
    branches = METHODS[method].chain(conv, factors)
    if form != AUTO:
        branches = lower(branches, form, Reordering())
    convs: list[Geometry] = []
    copied, copies = 0.0, 0
    for chain in branches:
        channels, size = geometry.in_channels, _sizes(geometry.input_size, geometry)
        for step in chain:
            values = _product(size, channels * geometry.batch)
            if isinstance(step, Repeat):
                copied += (1 + step.copies) * values
                channels *= step.copies
                copies += 1
                continue
            parts = step.convs if isinstance(step, Parallel) else (step,)
            after = _size_after(parts[0], size, geometry)
            sized = replace(geometry, input_size=_known(size), output_size=_known(after))
            convs += [sized.of(part) for part in parts]
            size, channels = after, sum(part.out_channels for part in parts)
            if isinstance(step, Parallel):
                copied += 2 * _product(size, channels * geometry.batch)
                copies += 1
    output = _product(
        _sizes(geometry.output_size, geometry), geometry.out_channels * geometry.batch
    )
    additions = len(branches) - 1
    added = 3 * additions * output if additions else 0.0
    return Work(tuple(convs), _count(copied), copies, _count(added), additions)


def work(geometry: Geometry, choice: Choice) -> Work:
    """The work of one call site of a layer, split as ``choice`` says."""
    return split_work(geometry, choice.method, choice.rank, choice.form)


def cost(layer: Layer, choice: Choice, *, bias_added: bool = False) -> Cost:
    """The cost of a split layer as it is written; ``bias_added``: it gets a bias of its own."""
    geometries = [replace(g, bias=g.bias or bias_added) for g in layer.geometries]
    sites = [work(geometry, choice).convs for geometry in geometries]
    return total(shared_cost(same) for same in zip(*sites, strict=True))


def cost_share(geometry: Geometry, method: str, rank: Rank) -> float:
    """The MACs of a split over those of the conv; without known sizes, as for an output of 1x1."""
    sized = with_sizes(geometry)
    after = total(layer_cost(g) for g in split_work(sized, method, rank, AUTO).convs).macs
    before = layer_cost(sized).macs
    return after / before if after is not None and before else 1.0


def with_sizes(geometry: Geometry) -> Geometry:
    """The geometry, for one position where its sizes are not known: enough for comparisons."""
    batch = geometry.batch or 1
    if geometry.input_size is not None and geometry.output_size is not None:
        return replace(geometry, batch=batch)
    one, many = (1,) * len(geometry.kernel), geometry.stride
    before, after = (one, many) if geometry.transposed else (many, one)
    return replace(geometry, input_size=before, output_size=after, batch=batch)


def whole(layer: Layer, spent: Cost, elementwise: int | None) -> Roofline:
    """The roofline of a layer that is not split; ``elementwise`` are the bytes around it."""
    count = len(layer.sites)
    return roofline.of_convs(layer.geometries, spent, elementwise, operators=count, layers=count)


def split(layer: Layer, choice: Choice, spent: Cost, elementwise: int | None) -> Roofline:
    """The roofline of a split layer; copies and additions of its form count as element-wise."""
    sites = [(work(g, choice), g.itemsize) for g in layer.geometries]
    moved = [None if w.moved is None else w.moved * itemsize for w, itemsize in sites]
    known = elementwise is not None and None not in moved
    return roofline.of_convs(
        [conv for each, _ in sites for conv in each.convs],
        spent,
        (elementwise or 0) + sum(size or 0 for size in moved) if known else None,
        operators=sum(each.operators for each, _ in sites),
        layers=len(layer.sites),
    )


def _conv_without_data(g: Geometry) -> Conv:
    """A conv of that geometry. Its padding is 1 everywhere, which marks, in the convs of a chain,
    the axes on which they take the size of the input to that of the output."""
    shape = (g.out_channels, g.in_channels // g.groups, *g.kernel)
    bias = placeholder((g.out_channels,)) if g.bias else None
    padding = ((1, 1),) * len(g.kernel)
    return Conv(
        weight=placeholder(shape),
        bias=bias,
        stride=g.stride,
        padding=padding,
        dilation=g.dilation,
        groups=g.groups,
        transposed=g.transposed,
    )


def _sizes(size: tuple[int, ...] | None, geometry: Geometry) -> tuple[float, ...]:
    return (math.nan,) * len(geometry.kernel) if size is None else size


def _size_after(conv: Conv, size: tuple[float, ...], geometry: Geometry) -> tuple[float, ...]:
    output = _sizes(geometry.output_size, geometry)
    if not conv.kernel:  # a linear layer leaves the sizes as they are
        return size
    return tuple(o if any(p) else s for o, s, p in zip(output, size, conv.padding, strict=True))


def _count(values: float) -> int | None:
    return round(values) if math.isfinite(values) else None


def _known(size: tuple[float, ...]) -> tuple[int, ...] | None:
    return None if any(math.isnan(s) for s in size) else tuple(int(s) for s in size)


def _product(size: tuple[float, ...], channels: int) -> float:
    return channels * math.prod(size)


def elementwise_bytes(graph: Graph) -> Mapping[str, int | None]:
    """Bytes that element-wise operators move, by the layer whose output they work on.

    An operator that reads what several layers made counts with the last of them. None for a
    layer where a size is not known; what comes before the first layer counts nowhere.
    """
    layers = survey(graph)
    order = {node.name: at for at, node in enumerate(graph.nodes)}
    owned = {site: layer for layer in layers for site in layer.sites}
    behind: dict[str, tuple[int, Layer]] = {}
    found: dict[str, int | None] = {layer.name: 0 for layer in layers}
    for node in graph.nodes:
        if node.name in owned:
            behind[node.output] = order[node.name], owned[node.name]
            continue
        before = [behind[value] for value in node.inputs if value in behind]
        if not before:
            continue
        last = max(before, key=lambda entry: entry[0])
        behind[node.output] = last
        if _is_elementwise(node):
            layer = last[1]
            have, size = found[layer.name], _moved(node, layer)
            found[layer.name] = None if have is None or size is None else have + size
    return found


def _is_elementwise(node: Node) -> bool:
    return node.op in ("affine", "add") or node.kind.lower().rstrip("_") in ELEMENTWISE_KINDS


def _moved(node: Node, layer: Layer) -> int | None:
    """What a node reads and writes, its output being as large as each of its inputs."""
    if node.shape is None or None in node.shape[1:] or not layer.geometries:
        return None
    values = math.prod(size or 1 for size in node.shape)
    return values * (len(node.inputs) + 1) * layer.geometry.itemsize
