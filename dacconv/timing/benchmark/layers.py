"""Time by layer: which layer of the original an entry of a runtime's profile belongs to.

ONNX Runtime renames the nodes that it transforms: a conv in its blocked layout (NCHWc) is named
after its output, which is that of the activation where one was fused into it. So an entry is
looked up by the name of a node, then of a value, then by the index of the node in the file, and
from there backwards through the nodes that may have been fused with a conv.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dacconv.formats.timing import Profile, Span
from dacconv.graph.layers import survey
from dacconv.graph.types import LAYER_OPS, Graph, Node
from dacconv.timing.benchmark.result import LayerTime, LayerTimes

BETWEEN = "between operators, and the profiler"
LAYOUT = "layout changes"
_LAYOUT_KINDS = ("ReorderInput", "ReorderOutput", "_to_copy", "to", "contiguous")
_LAYER_KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "linear", "addmm", "matmul")
_FAR = 12
"""The most nodes that are assumed to be fused with a layer."""


def layer_times(
    profiles: Sequence[Profile], graphs: Sequence[Graph], batch: int, threads: int | None
) -> LayerTimes:
    """The profiles of all models by the layers of the first; the rows add up to the totals.

    Layers are in the order of the first model, followed by types of operators by their time.
    """
    layers = [layer.name for layer in survey(graphs[0])]
    owned = {site: layer.name for layer in survey(graphs[0]) for site in layer.sites}
    columns = [
        by_layer(profile.spans, graph, layers, owned, graphs[0])
        for profile, graph in zip(profiles, graphs, strict=True)
    ]
    for column, profile in zip(columns, profiles, strict=True):
        column[BETWEEN, False] = profile.ms - sum(column.values())
    keys = {key: None for column in columns for key in column}
    named = [(name, True) for name in layers if (name, True) in keys]
    others = [key for key in keys if key[1] and key not in set(named)]
    kinds = sorted(
        (key for key in keys if not key[1] and key != (BETWEEN, False)),
        key=lambda key: -max(column.get(key, 0.0) for column in columns),
    )
    rows = tuple(
        LayerTime(name, layer, tuple(column.get((name, layer)) for column in columns))
        for name, layer in (*named, *others, *kinds, (BETWEEN, False))
    )
    totals = tuple(profile.ms for profile in profiles)
    return LayerTimes(batch, threads, rows, totals, min(profile.runs for profile in profiles))


def by_layer(
    spans: Iterable[Span],
    graph: Graph,
    layers: Sequence[str],
    owned: Mapping[str, str],
    original: Graph,
) -> dict[tuple[str, bool], float]:
    """Milliseconds per layer (``(name, True)``) and per type of operator (``(kind, False)``)."""
    times: dict[tuple[str, bool], float] = {}
    other_nodes = {node.name for node in original.nodes if node.op not in LAYER_OPS}
    for span, node in zip(*_matched(tuple(spans), graph), strict=True):
        name = node.name if node else span.name
        layer = owned.get(name) or (None if name in other_nodes else owner(name, layers))
        if layer is None and node is not None and node.op in LAYER_OPS:
            layer = name  # a layer that only this model has
        kind = LAYOUT if span.kind in _LAYOUT_KINDS else span.kind
        key = (kind, False) if layer is None else (layer, True)
        times[key] = times.get(key, 0.0) + span.ms
    return times


def owner(name: str, layers: Iterable[str]) -> str | None:
    """The layer that a node implements: that of its name, or of the longest prefix of its name.

    The nodes in the place of ``conv1`` are called ``conv1_dw``, ``conv1_1_pw`` or ``conv1.0``.
    """
    candidates = [
        layer
        for layer in layers
        if name == layer or (layer and name.startswith((f"{layer}_", f"{layer}.")))
    ]
    return max(candidates, key=len, default=None)


def _matched(spans: tuple[Span, ...], graph: Graph) -> tuple[tuple[Span, ...], list[Node | None]]:
    """The node of every span: the layer where one was fused with the nodes after it.

    Spans that name a layer are matched first. Of two convs before a fused addition, the one that
    has no time yet is then used.
    """
    index = _Index(graph)
    nodes = [index.find(span) for span in spans]
    assigned = {node.name for node in nodes if node is not None and node.op in LAYER_OPS}
    result: list[Node | None] = []
    for span, node in zip(spans, nodes, strict=True):
        match = node
        if node is not None and node.op not in LAYER_OPS and _is_layer(span):
            before = index.layers_before(node)
            match = next((layer for layer in before if layer.name not in assigned), node)
            assigned.add(match.name)
        result.append(match)
    return spans, result


def _is_layer(span: Span) -> bool:
    return span.kind.removeprefix("Fused").removeprefix("Qlinear") in _LAYER_KINDS


class _Index:
    """The nodes of a graph by every name that a runtime may give them."""

    def __init__(self, graph: Graph) -> None:
        self._nodes = graph.nodes
        self._names = {node.name: node for node in graph.nodes}
        self._values = {node.output: node for node in graph.nodes}

    def find(self, span: Span) -> Node | None:
        """The node that a span is named after."""
        name = span.name
        if (node := self._names.get(name) or self._values.get(name)) is not None:
            return node
        while "_" in name or "/" in name:  # Relu_7_nchwc, MatMul_3/MatMulAddFusion
            name = name[: max(name.rfind("_"), name.rfind("/"))]
            if (node := self._values.get(name) or self._names.get(name)) is not None:
                return node if self._is_possible(node, span) else None
        unnamed = span.index is not None and span.name == f"{span.kind}_{span.index}"
        if unnamed and span.index is not None and span.index < len(self._nodes):
            node = self._nodes[span.index]
            return node if node.kind == span.kind else None
        return None

    def _is_possible(self, node: Node, span: Span) -> bool:
        """Whether a span whose name begins with that of a node can be that node."""
        return _is_layer(span) or node.kind == span.kind

    def layers_before(self, node: Node) -> list[Node]:
        """The nearest layers that the inputs of a node come from, the last one first."""
        layers: dict[str, Node] = {}
        edge, steps = [node], 0
        while edge and steps < _FAR:
            producers = [self._values[v] for n in edge for v in n.inputs if v in self._values]
            layers |= {
                producer.name: producer for producer in producers if producer.op in LAYER_OPS
            }
            edge = [producer for producer in producers if producer.op not in LAYER_OPS]
            steps += 1
        order = {name: position for position, name in enumerate(self._names)}
        return sorted(layers.values(), key=lambda layer: -order[layer.name])
