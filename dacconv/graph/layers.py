"""The layers of a graph, for which a plan has entries: one per weight, in the graph's order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from dacconv.graph.types import LAYER_OPS, Graph, Layer, Node


def survey(graph: Graph) -> tuple[Layer, ...]:
    """One layer per weight of a conv, transposed conv or linear node, in the graph's order.

    Nodes that share a weight become one layer with several sites, named after the first. Convs
    whose geometry is not known, in the body of a loop say, are listed all the same.
    """
    sites: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op in LAYER_OPS:
            sites.setdefault(node.weight or f"\0{node.name}", []).append(node)
    return tuple(_layer(nodes) for nodes in sites.values())


def uncounted(graph: Graph) -> tuple[tuple[str, int, int], ...]:
    """``(operator, count, parameters)`` of the nodes that belong to no layer."""
    count: Counter[str] = Counter()
    params: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op not in LAYER_OPS:
            count[node.kind or node.op] += 1
            params[node.kind or node.op] += node.params
    return tuple((kind, count[kind], params[kind]) for kind in sorted(count))


def _layer(nodes: list[Node]) -> Layer:
    first = nodes[0]
    geometries = tuple(node.geometry for node in nodes if node.geometry is not None)
    return Layer(
        name=first.name,
        op=first.op,
        sites=tuple(node.name for node in nodes),
        geometries=geometries,
        skip=next(_reasons(nodes), None),
        params=first.params,
        precision=first.precision,
    )


def _reasons(nodes: list[Node]) -> Iterator[str]:
    """The reasons why no method can split a layer, the most important first."""
    node = nodes[0]
    if node.geometry is None:
        yield node.skip or "its shape is not known"
        return
    if len({n.op for n in nodes}) > 1:
        yield "its weight is shared with an operator of another kind"
    for other in nodes:
        if other.skip:
            yield other.skip
