"""Whole jobs with a precision: the file, its record, and what the commands make of it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch

from dacconv.conversion import verification
from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats import open_model
from dacconv.graph.findings import Latency
from dacconv.graph.plan_json import plan_to_json
from dacconv.jobs.convert import compare_files, convert_file, dry_run, inspect_file
from dacconv.jobs.reproduce import reproduce
from dacconv.jobs.write import Outcome
from dacconv.reports import html, json_report, markdown, words
from dacconv.settings import Settings
from tests.cli_nets import SmallNet, onnx_model, trained


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(onnx_model(), path)
    return path


def converted(net: Path, **settings: object) -> Outcome:
    return convert_file(net, Settings.of(**settings), output=net.with_name("out.onnx"), force=True)


@pytest.mark.parametrize(
    "split", [{}, {"rank": 2, "form": "sum"}, {"macs": 0.6, "calibrate": "none"}]
)
def test_a_conversion_is_reproduced_byte_for_byte(net: Path, split: dict[str, object]) -> None:
    outcome = converted(net, precision="int8,conv1=fp32", **split)
    assert not outcome.faulty
    report = outcome.report
    assert report.precision is not None
    assert report.file_bytes is not None
    assert report.file_bytes[0] == net.stat().st_size
    assert report.file_bytes[1] == outcome.written[0].stat().st_size < net.stat().st_size
    assert {row.name: row.precision for row in report.rows}["conv1"] == "fp32"
    assert reproduce(net, outcome.written[0], {}).exact


def test_reports_tell_the_precision(net: Path) -> None:
    report = converted(net, precision="int8").report
    data = json.loads(json_report.render(report))
    assert {row["precision"] for row in data["layers"]} == {"int8"}
    assert data["precision"]["ranges"] in ("min-max", "percentile", "mse")
    assert data["totals"]["file_bytes"]["before"] == net.stat().st_size
    assert data["plan"]["precision"]["layers"]["fc"] == "int8"
    for text in (markdown.render(report), html.render(report), "\n".join(words.facts(report))):
        assert "5 of 5 layers in int8" in text.replace("</b>", "").replace("\n", " ") or (
            "5 of 5" in text and "layers in int8" in text
        )
        assert "ranges measured on" in text
        assert "kB" in text
    assert words.columns(report)[-1] == "precision"


def test_quantised_files_are_inspected_and_checked_but_not_converted(net: Path) -> None:
    (target,) = converted(net, precision="int8").written
    report = inspect_file(target, Settings())
    assert {row.precision for row in report.rows} == {"int8"}
    check, missed = compare_files(net, target, Settings.of(max_error=0.2))
    assert not missed
    assert check.relative_error is not None
    for settings in ({"rank": 1}, {"precision": "int8"}):
        with pytest.raises(UnsupportedError, match="a quantised model"):
            convert_file(target, Settings.of(**settings), output=net.with_name("twice.onnx"))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8,fc=fp16,conv1=bf16"])
def test_half_precision_is_stored_and_reproduced(net: Path, precision: str) -> None:
    outcome = converted(net, precision=precision)
    (target,) = outcome.written
    assert outcome.report.precision is not None
    stored = {row.name: row.precision for row in inspect_file(target, Settings()).rows}
    assert stored == {row.name: row.precision for row in outcome.report.rows}
    assert stored["fc"] == "bf16" if precision == "bf16" else stored["fc"] == "fp16"
    check = outcome.report.verification
    assert check is not None
    assert check.relative_error is not None
    assert check.relative_error < 0.2
    assert target.stat().st_size < 0.8 * net.stat().st_size
    assert reproduce(net, target, {}).exact


def test_the_inputs_and_outputs_stay_floating_point(net: Path) -> None:
    (target,) = converted(net, precision="int8").written
    first, second = onnx.load(net), onnx.load(target)
    onnx.checker.check_model(second)
    assert list(first.graph.input) == list(second.graph.input)
    assert list(first.graph.output) == list(second.graph.output)


def test_auto_is_int8_only_where_that_is_faster(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for speedup, expected in ((2.0, "int8"), (0.9, "fp32")):
        time = Latency(1.0, 1 / speedup, speedup, speedup, speedup, 20, 1, (speedup, speedup))
        monkeypatch.setattr(verification, "side_by_side", lambda *_, time=time: time)
        outcome = converted(net, precision="auto,conv1=fp32")
        assert {row.precision for row in outcome.report.rows if row.name != "conv1"} == {expected}
        assert reproduce(net, outcome.written[0], {}).exact
    assert "not measured to be faster" in "\n".join(words.facts(outcome.report))


def test_a_plan_is_written_edited_and_fed_back(net: Path) -> None:
    plan = net.with_name("plan.json")
    dry_run(net, Settings.of(precision="int8"), output=plan)
    data = json.loads(plan.read_text())
    data["precision"]["layers"]["conv2"] = "fp32"
    plan.write_text(json.dumps(data))
    report = converted(net, plan=str(plan)).report
    assert {row.name: row.precision for row in report.rows} == {
        "conv1": "int8", "conv2": "fp32", "conv3": "int8", "point": "int8", "fc": "int8"
    }  # fmt: skip
    assert report.plan is not None
    assert json.loads(plan_to_json(report.plan))["precision"] == data["precision"]


def test_a_gate_on_the_error_stops_the_file(net: Path) -> None:
    outcome = converted(net, precision="int8", max_error=1e-6)
    assert outcome.report.missed
    assert not outcome.written


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "int8", "layers": ["conv*"]}, "goes? with a split"),
        ({"precision": "int8", "tune": True}, "goes? with a split"),
        ({"precision": "int9"}, "no precision"),
    ],
)
def test_settings_that_contradict_each_other(
    net: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        converted(net, **settings)


def test_torch_formats_name_the_way_out(tmp_path: Path) -> None:
    module, state, program = (tmp_path / n for n in ("net.pt", "net.pth", "net.pt2"))
    torch.save(trained(), module)
    torch.save(trained().state_dict(), state)
    exported = torch.export.export(trained(), (torch.zeros(1, 3, 12, 12),))
    torch.export.save(exported, program)
    arch = f"{Path(__file__).parents[1] / 'cli_nets.py'}:{SmallNet.__name__}"
    for path, options in (
        (module, {"trust_pickle": True}), (state, {}), (state, {"arch": arch}), (program, {})
    ):  # fmt: skip
        settings = Settings.of(precision="int8", input_shape=["1,3,12,12"], **options)
        assert open_model(path, settings.load_options).precision_refusal("int8")
        with pytest.raises(UnsupportedError, match=r"int8 .*torch\.onnx\.export"):
            convert_file(path, settings, output=tmp_path / f"out{path.suffix}")
