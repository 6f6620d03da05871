"""What is really written in the place of a layer: its convs, and the bytes moved around them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from dacconv.decompositions import METHODS
from dacconv.decompositions.forms import AUTO, FORMS, MULTIPLIER, Form
from dacconv.graph import roofline
from dacconv.graph.cost import Cost, shared_cost, total
from dacconv.graph.layers import survey
from dacconv.graph.roofline import Roofline
from dacconv.graph.types import Choice, Geometry, Graph, Layer, Node

ELEMENTWISE_KINDS = frozenset(
    {"abs", "add", "celu", "clamp", "clip", "div", "elu", "exp", "gelu", "hard_sigmoid",
     "hard_swish", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "leakyrelu", "maximum",
     "minimum", "mish", "mul", "neg", "pow", "prelu", "relu", "relu6", "selu", "sigmoid", "silu",
     "softplus", "softsign", "sqrt", "square", "sub", "swish", "tanh", "threshold",
     "thresholdedrelu"}
)  # fmt: skip
"""Operators that compute value by value, besides those that are ``affine`` or ``add``."""


def convs(geometry: Geometry, choice: Choice) -> tuple[Geometry, ...]:
    """The convs that one site of a split layer becomes, in the form of the choice."""
    parts = METHODS[choice.method].parts(geometry, choice.rank)
    if choice.rank < 2 or len(parts) != 2:
        return parts
    return _form(choice).convs(*parts, choice.rank)


def cost(layer: Layer, choice: Choice, *, bias_added: bool = False) -> Cost:
    """The cost of a split layer as it is written; ``bias_added``: it had no bias and has one."""
    made = [replace(g, bias=g.bias or bias_added) for g in layer.geometries]
    sites = [convs(geometry, choice) for geometry in made]
    return total(shared_cost(same) for same in zip(*sites, strict=True))


def whole(layer: Layer, spent: Cost, elementwise: int | None) -> Roofline:
    """The roofline of a layer that is not split; ``elementwise`` are the bytes around it."""
    count = len(layer.sites)
    return roofline.of_convs(layer.geometries, spent, elementwise, operators=count, layers=count)


def split(layer: Layer, choice: Choice, spent: Cost, elementwise: int | None) -> Roofline:
    """The roofline of a split layer; what its form copies and adds counts as element-wise."""
    form = _form(choice)
    own = [_around(geometry, form, choice.rank) for geometry in layer.geometries]
    known = elementwise is not None and None not in own
    return roofline.of_convs(
        [part for geometry in layer.geometries for part in convs(geometry, choice)],
        spent,
        (elementwise or 0) + sum(size or 0 for size in own) if known else None,
        operators=(form.operators(choice.rank) if choice.rank > 1 else 2) * len(layer.sites),
        layers=len(layer.sites),
    )


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


def _around(g: Geometry, form: Form, rank: int) -> int | None:
    """Bytes that a form moves besides its convs: additions, copies, joining."""
    if rank < 2 or form is FORMS[MULTIPLIER]:
        return 0
    if g.output_size is None or g.input_size is None:
        return None
    outputs, inputs = (g.batch * math.prod(size) for size in (g.output_size, g.input_size))
    middle = rank * outputs * g.in_channels
    values = form.around(rank, inputs * g.in_channels, middle, outputs * g.out_channels)
    return values * g.itemsize


def _form(choice: Choice) -> Form:
    """The form of a choice; what is still to be chosen counts as the paper's."""
    return FORMS[MULTIPLIER if choice.form == AUTO else choice.form]
