"""The figures of a sweep: the paper's two experiments, fronts, a heat map, the spectra.

``single`` and ``first-last`` are the experiments of Li et al., arXiv 1812.08374, section 4: one
layer split at a time at each rank, and the first or last k layers at one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dacconv.graph.types import FloatArray
from dacconv.reports.plots.marks import ORDERED, layer_ticks, marker, shades, short
from dacconv.reports.plots.style import (
    BLUE,
    GREEN,
    INK,
    LINE,
    ORANGE,
    PINK,
    RED,
    SKY,
    SOFT,
    new_figure,
    new_figures,
    style,
)
from dacconv.reports.sweep_words import rank_title
from dacconv.safe_text import visible
from dacconv.sweeps.fronts import front, knee
from dacconv.sweeps.points import BUDGET, DAC, FIRST, LAST, MODES, SINGLE
from dacconv.sweeps.results import SHARES, PointResult, Quality, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY)

KINDS = {
    SINGLE: "one layer",
    FIRST: "first k layers",
    LAST: "last k layers",
    "uniform": "all layers",
    BUDGET: "budget",
}


def sweep_figures(sweep: Sweep) -> dict[str, Figure]:
    """Every figure that the sweep has numbers for, by the name of its file.

    ``single`` and ``heatmap`` need mode single, ``first-last`` first-k or last-k; ``pareto`` needs
    costs, ``pareto-time`` latencies, and ``spectra`` a method of one rank.
    """
    quality = sweep.quality
    with style():
        figures = {
            "single": _single(sweep, quality),
            "first-last": _first_last(sweep, quality),
            "heatmap": _heatmap(sweep, quality),
            "pareto": _pareto(sweep, quality, sweep.macs_share, "MACs left", "cost"),
            "pareto-time": _pareto(sweep, quality, _time_share, "time left", "time"),
            "spectra": _spectra(sweep),
        }
    return {name: figure for name, figure in figures.items() if figure is not None}


def _single(sweep: Sweep, quality: Quality) -> Figure | None:
    rows = sweep.of_mode(SINGLE)
    names = [name for name in sweep.layers if any(row.layer == name for row in rows)]
    if not names:
        return None
    figure, axes = new_figure(max(6.4, 2.4 + 0.27 * min(len(names), 60)), 4.8)
    ranks = sorted({row.rank for row in rows if row.rank is not None})
    for index, (rank, colour) in enumerate(zip(ranks, shades(len(ranks)), strict=True)):
        by_layer = {row.layer: row for row in rows if row.rank == rank}
        values = [_value(quality, by_layer.get(name)) for name in names]
        axes.plot(
            range(len(names)), values, marker=marker(index), ms=4.5, lw=1.3, color=colour,
            label=rank_title(sweep, rank),
        )  # fmt: skip
    layer_ticks(axes, names)
    axes.set_xlabel("the one layer that is split, in order of execution")
    _quality_axis(axes, sweep, quality)
    _legend(figure, axes)
    _titled(axes, "One layer split at a time")
    return figure


def _first_last(sweep: Sweep, quality: Quality) -> Figure | None:
    modes = [mode for mode in (FIRST, LAST) if sweep.of_mode(mode)]
    if not modes:
        return None
    figure, panels = new_figures(1.6 + 4.4 * len(modes), 4.4, len(modes))
    for axes, mode in zip(panels, modes, strict=True):
        rows = sweep.of_mode(mode)
        ranks = sorted({row.rank for row in rows if row.rank is not None})
        for index, (rank, colour) in enumerate(zip(ranks, shades(len(ranks)), strict=True)):
            line = sorted((row for row in rows if row.rank == rank), key=lambda row: row.k or 0)
            axes.plot(
                [row.k or 0 for row in line], [_value(quality, row) for row in line],
                marker=marker(index), ms=4.5, lw=1.3, color=colour, label=rank_title(sweep, rank),
            )  # fmt: skip
        word = "first" if mode == FIRST else "last"
        _titled(axes, f"The {word} k layers split")
        axes.set_xlabel(f"k, counted from the {'input' if mode == FIRST else 'output'}")
        _wholes(axes)
        _quality_axis(axes, sweep, quality)
    for axes in panels[1:]:
        axes.set_ylabel("")
    _legend(figure, panels[0])
    return figure


def _heatmap(sweep: Sweep, quality: Quality) -> Figure | None:
    rows = sweep.of_mode(SINGLE)
    names = [name for name in sweep.layers if any(row.layer == name for row in rows)]
    ranks = sorted({row.rank for row in rows if row.rank is not None})
    if not names:
        return None
    cells = np.full((len(names), len(ranks)), np.nan)
    for row in rows:
        if row.layer in names and row.rank is not None:
            cells[names.index(row.layer), ranks.index(row.rank)] = _value(quality, row)
    height = 1.7 + 0.24 * min(len(names), 60)
    figure, axes = new_figure(max(4.8, 3.2 + 0.62 * len(ranks)), max(3.2, height))
    colours = ORDERED if quality.more else f"{ORDERED}_r"
    axes.set_facecolor(LINE)
    # not an image: one inside an SVG is data to load, which a page without network forbids
    edges = [np.arange(size + 1) - 0.5 for size in (len(ranks), len(names))]
    image = axes.pcolormesh(*edges, np.ma.masked_invalid(cells), cmap=colours)
    axes.invert_yaxis()
    if len(names) <= 60 and len(ranks) <= 16:
        _numbers(axes, cells, np.asarray(image.norm(cells)), quality)
    axes.grid(visible=False)
    axes.set_xticks(range(len(ranks)), [str(rank) for rank in ranks])
    layer_ticks(axes, names, vertical=True)
    axes.set_xlabel(" or ".join(f"{name} rank" for name in sweep.methods if name != DAC) or "rank")
    _titled(axes, "One layer split at a time")
    bar = figure.colorbar(image, ax=axes)
    if bar.solids is not None:
        bar.solids.set_rasterized(False)
    bar.set_label(quality.title)
    if quality.name in SHARES:
        bar.formatter = _percent()
        bar.update_ticks()
    return figure


def _numbers(axes: Axes, cells: FloatArray, level: FloatArray, quality: Quality) -> None:
    """Write every cell's value into it, in white or black, whichever is readable."""
    for (i, j), value in np.ndenumerate(cells):
        if np.isnan(value):
            continue
        dark = (level[i, j] < 0.55) == quality.more
        text = f"{100 * value:.0f}" if quality.name in SHARES else f"{value:.2g}"
        axes.text(j, i, text, ha="center", va="center", fontsize=7.5,
                  color="white" if dark else INK)  # fmt: skip


def _pareto(
    sweep: Sweep,
    quality: Quality,
    cost: Callable[[PointResult], float | None],
    label: str,
    word: str,
) -> Figure | None:
    rows = [row for row in sweep.rows if cost(row) is not None and quality.value(row) is not None]
    if len(rows) < 3:
        return None
    figure, axes = new_figure(7.2, 4.8)
    for index, mode in enumerate(MODES):
        of_mode = [row for row in rows if row.mode == mode]
        if of_mode:
            axes.scatter(
                [cost(row) or 0 for row in of_mode], [_value(quality, row) for row in of_mode],
                s=20, marker=marker(index), color=COLOURS[index], alpha=0.65, linewidths=0,
                label=KINDS[mode],
            )  # fmt: skip
    best = front(rows, cost, quality)
    axes.step(
        [cost(row) or 0 for row in best], [_value(quality, row) for row in best],
        where="post", color=INK, lw=1.3, label="best for its cost",
    )  # fmt: skip
    bend = knee(rows, cost, quality)
    if bend is not None:
        place = (cost(bend) or 0, _value(quality, bend))
        axes.plot(*place, marker="o", ms=13, mfc="none", mec=RED, mew=2, ls="none")
        axes.annotate(
            f"knee: {short(bend.label, 44)}", place, xytext=(14, -22 if quality.more else 22),
            textcoords="offset points", fontweight="bold", fontsize=9,
            arrowprops={"arrowstyle": "-", "color": SOFT},
        )  # fmt: skip
    axes.xaxis.set_major_formatter(_percent())
    axes.set_xlabel(f"{label}, of the original's")
    _quality_axis(axes, sweep, quality)
    others = ", ".join(sweep.methods) if sweep.methods not in ((), (DAC,)) else ""
    _titled(axes, f"Quality against {word}{f', {others}' if others else ''}")
    _legend(figure, axes)
    return figure


def _spectra(sweep: Sweep) -> Figure | None:
    names = [name for name in sweep.layers if sweep.spectra.get(name)]
    if not names:
        return None
    from matplotlib.ticker import NullFormatter

    figure, axes = new_figure(7.2, 4.8)
    many = len(names) > 12
    for index, (name, colour) in enumerate(zip(names, shades(len(names)), strict=True)):
        values = np.sqrt(np.asarray(sweep.spectra[name]))
        values = np.where(values > 1e-6, values, np.nan)
        axes.plot(
            range(1, len(values) + 1), values, color=colour, lw=1.2, ms=4,
            marker="" if many else marker(index), label=None if many else visible(name),
        )  # fmt: skip
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_percent())
    low, high = axes.get_ylim()
    axes.yaxis.set_minor_formatter(_percent() if high < 30 * low else NullFormatter())
    _wholes(axes)
    axes.set_xlabel("singular value, by size")
    axes.set_ylabel("its share of the kernel's norm")
    _titled(axes, "Singular values of each layer's kernel")
    if many:
        _depth_bar(figure, axes, names)
    else:
        _legend(figure, axes)
    return figure


def _depth_bar(figure: Figure, axes: Axes, names: Sequence[str]) -> None:
    """Add a colour bar with some of the layers' names as the legend of a line per layer."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    colours = ListedColormap(shades(len(names)))
    scale = ScalarMappable(Normalize(-0.5, len(names) - 0.5), colours)
    places = sorted({round(i * (len(names) - 1) / 7) for i in range(8)})
    bar = figure.colorbar(scale, ax=axes, ticks=places)
    if bar.solids is not None:
        bar.solids.set_rasterized(False)
    bar.ax.set_yticklabels([short(names[place]) for place in places], fontsize=8)
    bar.ax.invert_yaxis()
    bar.ax.grid(visible=False)


def _quality_axis(axes: Axes, sweep: Sweep, quality: Quality) -> None:
    """Set up the vertical axis for the quality, with a dashed line for the original's."""
    axes.set_ylabel(quality.title)
    before = quality.value(sweep.original)
    if quality.more and before is not None:
        axes.axhline(before, color=SOFT, lw=1, ls="--", zorder=0)
        axes.annotate(
            "original", (1, before), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", ha="right", fontsize=8, color=SOFT,
        )  # fmt: skip
    if quality.name in SHARES:
        axes.yaxis.set_major_formatter(_percent())


def _wholes(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _percent() -> PercentFormatter:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1, decimals=0)


def _titled(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontweight="bold")


def _legend(figure: Figure, axes: Axes) -> None:
    """Put the legend to the right of the axes, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside right upper", fontsize=9)


def _value(quality: Quality, row: PointResult | None) -> float:
    value = None if row is None else quality.value(row)
    return float("nan") if value is None else value


def _time_share(row: PointResult) -> float | None:
    if row.latency is None:
        return None
    return row.latency.converted_ms / row.latency.original_ms
