"""The roofline view as a user reads it."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from dacconv import zoo
from dacconv.conversion.report_build import build_report
from dacconv.formats.torch.module.trace import trace
from dacconv.graph.types import Choice, Graph, Plan
from dacconv.reports import EXPORTERS
from dacconv.reports import roofline_words as roofline_text
from tests.reports.test_exporters import GRAPH, report


def test_lines_name_what_is_worst_and_put_macs_beside_time() -> None:
    lines = roofline_text.lines(report())
    assert len(lines) <= 8
    assert lines[0].startswith("saved over the whole network: ")
    assert lines[0].endswith("of the MACs, 50.0 % of the time")
    assert lines[1].startswith("MACs per byte that the convs move: ")
    assert "fc" in lines[1]
    told = {line.split()[0]: line for line in lines[3:]}
    assert "G2" in told
    assert "1 of 4 layers, worst a " in told["G2"]
    assert "1.00 > " in told["G3"]


def test_an_inspected_model_has_one_side() -> None:
    lines = roofline_text.lines(build_report("onnx", GRAPH))
    assert all(">" not in line for line in lines)
    assert not any(line.startswith("saved") for line in lines)


def test_the_shares_of_mobilenet_v1_are_those_of_its_table_2() -> None:
    with torch.device("meta"):
        net, image = zoo.mobilenet_v1().eval(), torch.empty(1, 3, 224, 224)
    made = trace(net, [image], {}, ["x"])
    lines = roofline_text.lines(build_report("module", Graph(made.nodes, (), made.outputs)))
    assert lines[-1] == (  # 94.86 %, 3.06 %, 1.19 % and 0.18 %, which leave 0.71 % unexplained
        "MACs of the original by kind of layer: 94.9 % in 1x1 convs, 3.1 % in depthwise convs, "
        "1.9 % in other convs, 0.2 % in linear layers"
    )


def test_nothing_is_said_where_no_size_is_known() -> None:
    nodes = tuple(
        replace(n, geometry=replace(n.geometry, input_size=None, output_size=None))
        if n.geometry
        else n
        for n in GRAPH.nodes
    )
    made = build_report("onnx", Graph(nodes, GRAPH.inputs, GRAPH.outputs))
    assert roofline_text.lines(made) == []
    assert "Roofline" not in EXPORTERS["markdown"](made)
    assert json.loads(EXPORTERS["json"](made))["layers"][0]["intensity"]["before"] is None


def test_json_has_every_layer_and_the_whole() -> None:
    data = json.loads(EXPORTERS["json"](report()))
    row = data["layers"][0]
    assert row["intensity"]["before"] == row["macs"]["before"] / row["bytes"]["before"]
    assert row["guidelines"]["before"]["groups"] is None
    assert row["guidelines"]["after"]["groups"] > 1
    assert row["operators"] == {"before": 2, "after": 4}  # a layer that is run twice
    assert row["guidelines"]["after"]["fragmentation"] == 2
    totals = data["totals"]
    assert totals["ms"] == {"before": 2.0, "after": 1.0}
    assert totals["operators"]["after"] == totals["operators"]["before"] + 2
    assert json.loads(EXPORTERS["json"](report(False)))["totals"]["ms"] is None


def test_the_form_decides_how_many_operators_stand_for_a_layer() -> None:
    for form, count in (("multiplier", 2), ("sum", 5), ("repeat", 3), ("concat", 4)):
        plan = Plan((Choice("a", "dac", (2,), form=form),))
        row = build_report("onnx", GRAPH, plan=plan).rows[0]
        assert row.roof_after.guidelines["fragmentation"] == count


def test_markdown_has_a_row_for_each_layer() -> None:
    text = EXPORTERS["markdown"](report())
    assert "| layer | MACs per byte | G1 | G2 | G3 | G4 |" in text
    assert text.count("| 1.00 > 2.00 |") == 1
