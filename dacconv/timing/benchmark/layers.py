"""Whose time it is: from a runtime's profile to the layers of the original.

ONNX Runtime renames what it transforms: a conv in its blocked layout (NCHWc) is called after
the value that it makes, which is the activation's where one was fused into it. So an entry is
looked up by node name, then by value, then by the index that the node has in the file, and
from there back through what may have been fused to the conv behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dacconv.formats.timing import Profile, Span
from dacconv.graph.layers import ROW_OPS, survey
from dacconv.graph.types import Graph, Node
from dacconv.timing.benchmark.result import LayerTime, LayerTimes

BETWEEN = "between operators, and the profiler"
LAYOUT = "layout changes"
_LAYOUT_KINDS = ("ReorderInput", "ReorderOutput", "_to_copy", "to", "contiguous")
_LAYER_KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "linear", "addmm", "matmul")
_FAR = 12
"""How many nodes may have been fused behind a layer, at most."""


def layer_times(
    profiles: Sequence[Profile], graphs: Sequence[Graph], batch: int, threads: int | None
) -> LayerTimes:
    """The profiles of all models by the layers of the first; every row's parts add up.

    Layers come in the order of the first model, then kinds of operators by their time.
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
    more = [key for key in keys if key[1] and key not in set(named)]
    kinds = sorted(
        (key for key in keys if not key[1] and key != (BETWEEN, False)),
        key=lambda key: -max(column.get(key, 0.0) for column in columns),
    )
    rows = tuple(
        LayerTime(name, layer, tuple(column.get((name, layer)) for column in columns))
        for name, layer in (*named, *more, *kinds, (BETWEEN, False))
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
    """Milliseconds per layer (``(name, True)``) and per kind of operator (``(kind, False)``)."""
    found: dict[tuple[str, bool], float] = {}
    known = {node.name for node in original.nodes if node.op not in ROW_OPS}
    for span, node in zip(*_matched(tuple(spans), graph), strict=True):
        name = node.name if node else span.name
        layer = owned.get(name) or (None if name in known else owner(name, layers))
        if layer is None and node is not None and node.op in ROW_OPS:
            layer = name  # of this model alone
        kind = LAYOUT if span.kind in _LAYOUT_KINDS else span.kind
        key = (kind, False) if layer is None else (layer, True)
        found[key] = found.get(key, 0.0) + span.ms
    return found


def owner(name: str, layers: Iterable[str]) -> str | None:
    """The layer that a node stands for: its own name, or the longest that it begins with.

    What takes the place of ``conv1`` is called ``conv1_dw``, ``conv1_1_pw``, ``conv1.0``.
    """
    fitting = [
        layer
        for layer in layers
        if name == layer or (layer and name.startswith((f"{layer}_", f"{layer}.")))
    ]
    return max(fitting, key=len, default=None)


def _matched(spans: tuple[Span, ...], graph: Graph) -> tuple[tuple[Span, ...], list[Node | None]]:
    """The node of every span; a layer where one was fused with what follows it.

    What is a layer for certain comes first, so that of two convs behind a fused addition
    the one that is still without time is taken.
    """
    index = _Index(graph)
    nodes = [index.find(span) for span in spans]
    taken = {node.name for node in nodes if node is not None and node.op in ROW_OPS}
    result: list[Node | None] = []
    for span, node in zip(spans, nodes, strict=True):
        made = node
        if node is not None and node.op not in ROW_OPS and _is_layer(span):
            behind = index.layers_behind(node)
            made = next((one for one in behind if one.name not in taken), None) or node
            taken.add(made.name)
        result.append(made)
    return spans, result


def _is_layer(span: Span) -> bool:
    return span.kind.removeprefix("Fused").removeprefix("Qlinear") in _LAYER_KINDS


class _Index:
    """The nodes of a graph by all that a runtime may call them by."""

    def __init__(self, graph: Graph) -> None:
        self._nodes = graph.nodes
        self._names = {node.name: node for node in graph.nodes}
        self._values = {node.output: node for node in graph.nodes}

    def find(self, span: Span) -> Node | None:
        """The node that a span is called after."""
        name = span.name
        if (node := self._names.get(name) or self._values.get(name)) is not None:
            return node
        while "_" in name or "/" in name:  # Relu_7_nchwc, MatMul_3/MatMulAddFusion
            name = name[: max(name.rfind("_"), name.rfind("/"))]
            if (node := self._values.get(name) or self._names.get(name)) is not None:
                return node if self._fits(node, span) else None
        unnamed = span.index is not None and span.name == f"{span.kind}_{span.index}"
        if unnamed and span.index is not None and span.index < len(self._nodes):
            node = self._nodes[span.index]
            return node if node.kind == span.kind else None
        return None

    def _fits(self, node: Node, span: Span) -> bool:
        """Whether a span whose name only begins like a node's can be that node."""
        return _is_layer(span) or node.kind == span.kind

    def layers_behind(self, node: Node) -> list[Node]:
        """The nearest layers that a node's inputs come from, the last one first."""
        found: dict[str, Node] = {}
        edge, steps = [node], 0
        while edge and steps < _FAR:
            makers = [self._values[v] for n in edge for v in n.inputs if v in self._values]
            found |= {maker.name: maker for maker in makers if maker.op in ROW_OPS}
            edge = [maker for maker in makers if maker.op not in ROW_OPS]
            steps += 1
        order = {name: at for at, name in enumerate(self._names)}
        return sorted(found.values(), key=lambda one: -order[one.name])
