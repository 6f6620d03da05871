"""The effect of a conversion, layer by layer: costs before and after, and errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dacconv.conversion.report import Report, Row
from dacconv.reports.plots.style import BLUE, GREEN, GREY, LINE, ORANGE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ORDERED = "layer, in order of {}"


def report_figures(report: Report) -> dict[str, Figure]:
    """``costs``, and ``losses`` where a layer was split, by the names of their files."""
    error_figure = losses(report)
    return {"costs": costs(report)} | ({} if error_figure is None else {"losses": error_figure})


@style()
def costs(report: Report) -> Figure:
    """MACs per layer before and after; parameters where the MACs are not known."""
    counted = report.before.macs is not None
    before = [_cost(row.before.macs if counted else row.before.params) for row in report.rows]
    after = [_cost(row.after.macs if counted else row.after.params) for row in report.rows]
    figure, axes = new_figure()
    _bars(axes, before, color=LINE, label="before")
    split = [value if row.rank else math.nan for row, value in zip(report.rows, after, strict=True)]
    whole = [math.nan if row.rank else value for row, value in zip(report.rows, after, strict=True)]
    _bars(axes, split, color=BLUE, label="after, split")
    _bars(axes, whole, color=GREY, label="after, not split")
    axes.set_ylabel("MACs" if counted else "parameters")
    _finish(axes, report)
    return figure


@style()
def losses(report: Report) -> Figure | None:
    """The relative error of every split kernel, and of its layer's output if it was measured."""
    split = [(n, row) for n, row in enumerate(report.rows, 1) if row.rank is not None]
    if not any(row.kernel_error for _, row in split):
        return None
    figure, axes = new_figure()
    numbers = [n for n, _ in split]
    kernels = [row.kernel_error or 0.0 for _, row in split]
    axes.vlines(numbers, 0, kernels, color=LINE, linewidth=_width(report.rows))
    axes.plot(numbers, kernels, "o", color=BLUE, markersize=4, label="kernel")
    fits = [(n, row.fit) for n, row in split if row.fit is not None]
    if fits:
        fit_numbers = [n for n, _ in fits]
        plain = [math.sqrt(fit.plain) for _, fit in fits]
        held = [math.sqrt(fit.held) for _, fit in fits]
        axes.plot(fit_numbers, plain, "^", color=ORANGE, markersize=4, label="output, plain split")
        axes.plot(fit_numbers, held, "s", color=GREEN, markersize=3.5, label="output, converted")
    axes.set_ylabel("relative error")
    axes.set_ylim(bottom=0)
    _finish(axes, report)
    return figure


def _bars(axes: Axes, values: Sequence[float], *, color: str, label: str) -> None:
    if any(value > 0 for value in values):
        axes.bar(range(1, len(values) + 1), values, color=color, label=label, width=0.8)


def _finish(axes: Axes, report: Report) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.grid(visible=False, axis="x")
    axes.set_xlim(0.3, len(report.rows) + 0.7)
    axes.set_xlabel(ORDERED.format(report.order))
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    if axes.get_ylabel() != "relative error":
        axes.yaxis.set_major_formatter(EngFormatter())
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0)


def _cost(value: int | None) -> float:
    return math.nan if value is None else value


def _width(rows: Sequence[Row]) -> float:
    return max(0.8, min(4.0, 100 / len(rows)))
