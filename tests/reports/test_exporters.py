import json
from dataclasses import replace

import pytest

from dacconv.conversion.report import Merging
from dacconv.conversion.report_build import build_report
from dacconv.graph.findings import Latency, LayerError, OutputCheck, Verification
from dacconv.graph.types import Choice, Geometry, Graph, Node, Plan, Provenance, Skipped, ValueSpec
from dacconv.reports import EXPORTERS, html
from dacconv.reports import words as formatting

CONV = Geometry(16, 32, (3, 3), (1, 1), (1, 1), 1, False, (8, 8), (8, 8))
POINTWISE = replace(CONV, kernel=(1, 1))
LINEAR = Geometry(32, 10, (), (), (), 1, True, (), ())
GRAPH = Graph(
    nodes=(
        Node("a", "conv", ("x",), "va", geometry=CONV, weight="wa", params=4608),
        Node("bn", "affine", ("va",), "vb", kind="BatchNormalization", params=128),
        Node("p|q", "conv", ("vb",), "vp", geometry=POINTWISE, weight="wp", params=512),
        Node("a2", "conv", ("vp",), "va2", geometry=CONV, weight="wa"),
        Node("b", "conv", ("va2",), "vb2", geometry=CONV, weight="wb", params=4608),
        Node("fc", "linear", ("vb2",), "y", geometry=LINEAR, weight="wf", params=330),
    ),
    inputs=(ValueSpec("x", (None, 16, 8, 8)),),
    outputs=("y",),
    notes=("a note",),
)
PLAN = Plan(
    (Choice("a", "dac", (2,)),),
    (
        Skipped("p|q", "a 1x1 kernel: there is nothing to split"),
        Skipped("b", "rank 9 would cost 2 x"),
        Skipped("fc", "a linear layer: it has no kernel to split"),
    ),
)


def report(verified=True):
    check = Verification(
        relative_error=0.25,
        agreement=0.875,
        outputs=(OutputCheck("y", (1, 10), "float32", True, 0.25, 0.5, 0.875),),
        latency=Latency(2.0, 1.0, 2.0, 1.9, 2.1, 10, 1),
        samples=8,
        seed=0,
        runtime="onnxruntime 1",
        inputs=("x 1x16x8x8 float32",),
    )
    made = build_report("onnx", GRAPH, plan=PLAN, errors={"a": LayerError(0.6)})
    return replace(
        made,
        provenance=Provenance("0.1.0", "ab" * 32, "net.onnx", {"rank": 2}),
        verification=check if verified else None,
        unverified=None if verified else "--no-verify was given",
    )


def test_totals_are_the_sums_of_the_rows_and_of_the_network():
    data = report().to_dict()
    for kind in ("macs", "params", "bytes"):
        for side in ("before", "after"):
            total = sum(row[kind][side] for row in data["layers"])
            assert data["totals"][kind][side] == total
    conv = 64 * 16 * 32 * 9
    assert data["totals"]["macs"]["before"] == 3 * conv + 64 * 16 * 32 + 320
    assert data["totals"]["params"]["before"] == 2 * 4608 + 512 + 330
    split = 64 * (2 * 16 * 9 + 2 * 16 * 32)
    assert data["layers"][0]["macs"] == {"before": 2 * conv, "after": 2 * split}
    assert data["layers"][0]["params"] == {"before": 4608, "after": 2 * 16 * 9 + 2 * 16 * 32}


def test_the_schema():
    data = json.loads(EXPORTERS["json"](report()))
    assert data["schema_version"] == 1
    row = data["layers"][0]
    assert (row["name"], row["eligible"], row["reason"], row["rank"]) == ("a", True, None, 2)
    assert row["kernel_error"] == 0.6
    assert row["energy_kept"] == pytest.approx(0.64)
    assert row["sites"] == 2
    assert [r["name"] for r in data["refusals"]] == ["p|q", "b", "fc"]
    assert data["uncounted"] == [{"kind": "BatchNormalization", "count": 1, "params": 128}]
    assert data["verification"]["relative_error"] == 0.25
    assert data["provenance"]["options"] == {"rank": 2}
    assert data["plan"]["layers"] == [{"name": "a", "method": "dac", "rank": 2}]


def test_a_merged_layer_says_into_which():
    graph = replace(GRAPH, nodes=tuple(node for node in GRAPH.nodes if node.name != "p|q"))
    merging = Merging(graph, {"p|q": "b"}, {}, (), ())
    made = build_report("onnx", GRAPH, plan=PLAN, merging=merging)
    rows = {row["name"]: row for row in made.to_dict()["layers"]}
    assert rows["p|q"]["merged_into"] == "b"
    assert rows["p|q"]["reason"] == "merged into b"
    assert rows["b"]["merged_into"] is None
    assert "merged into another, without loss" in EXPORTERS["html"](made)


def test_a_layer_whose_reason_only_sounds_merged_is_not():
    made = report()
    row = replace(made.rows[2], reason="merged into a pool of reasons")
    text = EXPORTERS["html"](replace(made, rows=(*made.rows[:2], row)))
    assert "merged into another, without loss" not in text


def test_markdown_escapes_and_holds_everything():
    text = EXPORTERS["markdown"](report())
    assert "| p\\|q | 1x1 | 16 | 32 |" in text
    assert "| a (x2) | 3x3 |" in text
    assert "0.6 | 64.0 % |" in text
    assert "relative error 0.25, same top class 87.5 %" in text
    assert "2.00 x as fast" in text
    assert "a note" in text
    table, _, _ = text.partition("## Roofline")
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "Not verified: --no-verify was given." in EXPORTERS["markdown"](report(False))


def test_numbers_as_words():
    assert [formatting.number(n) for n in (None, 0, 7, 999, 1000, 15470264320, 999_999)] == [
        "?", "0", "7", "999", "1.00 k", "15.5 G", "1.00 M",
    ]  # fmt: skip
    assert formatting.saved(100, 58) == "42.0 %"
    assert formatting.saved(None, 58) == "?"


def test_the_page_holds_everything():
    evil = "<script>alert(1)</script>"
    made = replace(report(), missed=("relative error: 0.25, at most 0.1 required",))
    made = replace(made, rows=(replace(made.rows[0], name=evil), *made.rows[1:]))
    text = EXPORTERS["html"](made)
    assert text == EXPORTERS["html"](made)
    assert evil not in text
    assert "&lt;script&gt;alert(1)" in text
    for words in (
        "net.onnx",
        "Gate missed: relative error: 0.25, at most 0.1 required",
        "keep their top class",
        "2.00 x",
        "rank 9 would cost 2 x",
        "a 1x1 kernel",
        "&#34;plan_version&#34;: 2",
        "ab" * 32,
        "rank = 2",
        "rank 2 of 9, kernel error 0.6",
    ):
        assert words in text
    assert text.count("<svg") == 2
    assert "not verified" in EXPORTERS["html"](report(False))


def test_the_page_of_a_model_as_it_is():
    text = EXPORTERS["html"](build_report("onnx", GRAPH))
    assert "layers can be split" in text
    assert "saved" not in text[text.index("<h1") :]


def test_the_page_of_a_verification():
    check = report().verification
    text = html.render_verification(check, "a and b", ("agreement <b>",))
    assert "Gate missed: agreement &lt;b&gt;" in text
    assert "87.5 %" in text
    assert "1x10" in text
