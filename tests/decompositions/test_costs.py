"""What stands in the place of a layer, against what is really written."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest

import dacconv
from dacconv.decompositions.costs import cost, elementwise_bytes, split, whole, work
from dacconv.decompositions.forms import FORMS
from dacconv.graph.cost import layer_cost
from dacconv.graph.layers import survey
from dacconv.graph.types import Choice, Geometry, Graph, Layer, Node
from tests import cli_nets

G = Geometry(8, 16, (3, 3), (2, 2), (1, 1), 1, True, (10, 10), (5, 5), 2)
OPERATORS = {
    "multiplier": lambda rank: 2,
    "sum": lambda rank: 3 * rank - 1,
    "repeat": lambda rank: 3,
    "concat": lambda rank: rank + 2,
}
LAYER = Layer("a", "conv", ("a",), (G,))


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_form_has_the_same_macs_and_parameters(form, rank) -> None:
    made, plain = (
        Choice("a", "dac", (rank,), form=form),
        Choice("a", "dac", (rank,), form="multiplier"),
    )
    spent, expected = cost(LAYER, made), cost(LAYER, plain)
    assert (spent.macs, spent.params) == (expected.macs, expected.params)
    assert spent.traffic >= sum(layer_cost(g).params for g in work(G, made).convs) * 4
    roof = split(LAYER, made, spent, 0)
    assert roof.operators == (2 if rank == 1 else OPERATORS[form](rank))


@pytest.mark.parametrize("form", list(FORMS))
def test_convs_and_operators_are_those_of_the_file(form, tmp_path) -> None:
    onnx.save(cli_nets.onnx_model(), tmp_path / "net.onnx")
    model = dacconv.load(tmp_path / "net.onnx")
    plan = dacconv.Plan((Choice("conv3", "dac", (3,), form=form),))
    before = model.graph()
    done = dacconv.convert(model, plan)
    after = done.model.graph()
    known = {node.name for node in before.nodes}
    new = [node for node in after.nodes if node.name not in known]
    found = [node.geometry for node in new if node.op == "conv"]
    row = next(row for row in done.report.rows if row.name == "conv3")
    assert len(new) == row.roof_after.operators
    assert sum(layer_cost(g).traffic for g in found) == row.after.traffic
    assert row.roof_before.operators == 1
    # a BatchNorm and a ReLU before; the ReLU, and what the form adds, after
    values = 32 * 12 * 12 * 4
    assert row.roof_before.elementwise == 4 * values
    size = 24 * 12 * 12 * 4
    own = {"multiplier": 0, "sum": 2 * 3 * values, "repeat": 4 * size, "concat": 6 * size}[form]
    assert row.roof_after.elementwise == 2 * values + own


def test_elementwise_work_belongs_to_the_last_layer_before_it() -> None:
    def conv(name: str, source: str) -> Node:
        return Node(name, "conv", (source,), f"v{name}", weight=name, geometry=G, shape=(2, 4))

    nodes = (
        Node("early", "other", ("x",), "ve", kind="Relu", shape=(2, 4)),
        conv("a", "ve"),
        Node("act", "other", ("va",), "vr", kind="silu_", shape=(2, 4)),
        conv("b", "vr"),
        Node("pool", "pool", ("vb",), "vp", kind="MaxPool", shape=(2, 4)),
        Node("plus", "add", ("vr", "vp"), "y", kind="Add", shape=(2, 4)),
        conv("c", "y"),
        Node("open", "other", ("vc",), "z", kind="Relu", shape=(2, None)),
    )
    assert elementwise_bytes(Graph(nodes, (), ("z",))) == {"a": 2 * 32, "b": 3 * 32, "c": None}
    layers = survey(Graph(nodes, (), ("z",)))
    unknown = replace(layers[0], geometries=())
    assert (
        whole(unknown, cost(LAYER, Choice("a", "dac", (1,))), None).guidelines["elementwise"]
        is None
    )
