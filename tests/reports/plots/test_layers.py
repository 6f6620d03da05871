"""Figures of a report: what is drawn is what the report says, and files of it are stable."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dacconv.conversion.report_build import build_report
from dacconv.graph.findings import LayerFit
from dacconv.reports import plots
from dacconv.reports.plots import layers
from tests.reports.test_exporters import GRAPH, report


def heights(figure) -> list[list[float]]:
    return [[bar.get_height() for bar in group] for group in figure.axes[0].containers]


def test_costs_are_those_of_the_rows() -> None:
    made = report()
    before, split, _ = heights(layers.costs(made))
    assert before == [row.before.macs for row in made.rows]
    assert split[0] == made.rows[0].after.macs
    assert layers.costs(made).axes[0].get_ylabel() == "MACs"


def test_parameters_where_the_macs_are_not_known() -> None:
    made = report()
    unknown = tuple(replace(r, before=replace(r.before, macs=None)) for r in made.rows)
    figure = layers.costs(replace(made, rows=unknown))
    assert figure.axes[0].get_ylabel() == "parameters"
    assert heights(figure)[0] == [row.before.params for row in made.rows]


def test_losses_of_kernels_and_outputs() -> None:
    made = report()
    lines = layers.losses(made).axes[0].get_lines()
    assert [list(line.get_ydata()) for line in lines] == [[0.6]]
    fit = LayerFit(predicted=0.01, plain=0.25, held=0.04, what="fitted")
    fitted = (replace(made.rows[0], fit=fit), *made.rows[1:])
    lines = layers.losses(replace(made, rows=fitted)).axes[0].get_lines()
    assert [list(line.get_ydata()) for line in lines] == [[0.6], [0.5], [0.2]]
    assert layers.losses(build_report("onnx", GRAPH)) is None


def test_files_are_the_same_twice(tmp_path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        paths = plots.save(layers.costs(report()), tmp_path / folder, "costs")
        assert [path.name for path in paths] == ["costs.png", "costs.svg"]
    for name in ("costs.png", "costs.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (tmp_path / "one" / "costs.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "one" / "costs.svg").read_text()


@pytest.mark.parametrize("count", [1, 200])
def test_any_number_of_layers(count: int) -> None:
    made = report()
    rows = tuple(replace(made.rows[0], name=f"layer{n}") for n in range(count))
    assert len(heights(layers.costs(replace(made, rows=rows)))[0]) == count
