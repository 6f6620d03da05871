"""Figures of a sweep: what is drawn is what the rows say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dacconv.graph.findings import Latency
from dacconv.graph.types import Choice
from dacconv.reports import plots
from dacconv.sweeps.results import PointResult, Sweep

NAMES = tuple(f"backbone.stage{i // 4}.block_{i % 4}.very.long.$name_{i}.conv" for i in range(50))


def swept(count: int, *, timed: bool = False, agreement: bool = True) -> Sweep:
    def row(label, mode, macs, value, **more):
        time = Latency(2.0, 2.0 * macs / 100, 100 / macs, 1, 2, 10, 1) if timed else None
        return PointResult(label, mode, macs=macs, params=9, output_error=1.1 - value,
                           kernel_error=1.1 - value, agreement=value if agreement else None,
                           latency=time, **more)  # fmt: skip

    rows = [row("original", "original", 100, 1.0)]
    for i, name in enumerate(NAMES[:count]):
        for rank in (1, 2, 3):
            value = min(1.0, 0.3 + 0.2 * rank + 0.1 * (i % 3))
            rows.append(
                row(f"{name}@{rank}", "single", 60 + 10 * rank, value, layer=name, rank=rank)
            )
    rows += [
        row(f"{mode}{k}@{rank}", mode, 100 - 15 * k // rank, 1 - 0.2 * k / rank, k=k, rank=rank)
        for mode in ("first-k", "last-k") for rank in (1, 2) for k in (1, 2, 3)
    ]  # fmt: skip
    spectra = dict.fromkeys(NAMES[:count], (0.7, 0.2, 0.1, 0.0))
    return Sweep({"source": "net.onnx"}, NAMES[:count], spectra, tuple(rows))


def test_lines_hold_the_numbers_of_their_ranks():
    found = swept(5)
    figures = plots.sweep_figures(found)
    assert list(figures) == ["single", "first-last", "heatmap", "pareto", "spectra"]
    lines = {line.get_label(): line for line in figures["single"].axes[0].get_lines()}
    for rank in (1, 2, 3):
        expected = [row.agreement for row in found.of_mode("single") if row.rank == rank]
        assert list(lines[f"rank {rank}"].get_ydata()) == expected
    cells = figures["heatmap"].axes[0].collections[0].get_array()
    assert cells.shape == (5, 3)
    assert cells[1, 2] == pytest.approx(found.of_mode("single")[5].agreement)
    first, last = figures["first-last"].axes
    assert list(first.get_lines()[0].get_xdata()) == [1, 2, 3]
    assert "last" in last.get_title(loc="left")


def test_times_are_drawn_where_they_were_taken():
    assert "pareto-time" in plots.sweep_figures(swept(3, timed=True))


def test_errors_are_drawn_where_nothing_else_is_known():
    figure = plots.sweep_figures(swept(3, agreement=False))["single"]
    assert figure.axes[0].get_ylabel() == "relative output error"


def test_many_layers_with_long_names_and_files_that_do_not_change(tmp_path):
    found = swept(50)
    for name, figure in plots.sweep_figures(found).items():
        once = plots.svg(figure)
        assert once == plots.svg(plots.sweep_figures(found)[name])
        for path in plots.save(figure, tmp_path, name):
            assert path.stat().st_size > 5000
    shown = plots.sweep_figures(found)["single"].axes[0].get_xticklabels()
    assert all(len(label.get_text()) <= 22 for label in shown)
    assert len({label.get_text() for label in shown}) == len(shown)


def test_a_method_other_than_dac_is_named():
    found = swept(3)
    choices = (Choice("conv", "spatial", (2,)),)
    rows = [replace(row, choices=choices) if row.rank else row for row in found.rows]
    figures = plots.sweep_figures(replace(found, rows=tuple(rows)))
    labels = [line.get_label() for line in figures["single"].axes[0].get_lines()]
    assert labels[:3] == ["spatial rank 1", "spatial rank 2", "spatial rank 3"]
    assert figures["heatmap"].axes[0].get_xlabel() == "spatial rank"
    assert "spatial" in figures["pareto"].axes[0].get_title(loc="left")
