"""The ways to split a kernel. A new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dacconv.decompositions import channel, cp, dac, decoupling, spatial, tucker
from dacconv.decompositions.base import Decomposition, Method, part
from dacconv.decompositions.formula import Factors, Formula
from dacconv.graph.layers import survey as survey_graph
from dacconv.graph.types import Graph, Layer

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        dac.METHOD,
        *spatial.METHODS,
        decoupling.METHOD,
        *channel.METHODS,
        tucker.METHOD,
        cp.METHOD,
    )
}
ALL = tuple(METHODS.values())


def survey(graph: Graph, methods: Sequence[Method] = ALL) -> tuple[Layer, ...]:
    """The layers of a graph; one that none of the methods can split says why in ``skip``."""
    layers = survey_graph(graph)
    return tuple(replace(layer, skip=refusal(layer, methods)) for layer in layers)


def refusal(layer: Layer, methods: Sequence[Method] = ALL) -> str | None:
    """Why none of the methods can split a layer; None where one can."""
    if layer.skip is not None:
        return layer.skip
    reasons = [method.refuses(layer) for method in methods]
    return None if None in reasons else reasons[0]


__all__ = [
    "ALL",
    "METHODS",
    "Decomposition",
    "Factors",
    "Formula",
    "Method",
    "part",
    "refusal",
    "survey",
]
