"""A benchmark as bars: the time of every model under every setting, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dacconv.reports.benchmark_words import case_title, milliseconds, ratio, spread
from dacconv.reports.plots.style import BLUE, GREY, INK, ORANGE, style
from dacconv.safe_text import visible
from dacconv.timing.benchmark.result import Benchmark, Case, Timing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _BAR, _MARGIN = 7.0, 0.34, 0.75
"""Inches: the width of the figure, the height of a bar with its gap, of a panel without bars."""


@style()
def draw(result: Benchmark) -> Figure:
    """A panel for each case, a bar for each model: the median and its confidence interval.

    Blue is significantly faster than the first model, orange significantly slower, grey neither.
    """
    from matplotlib.figure import Figure

    bars = sum(len(case.timings) for case in result.cases)
    height = _BAR * bars + _MARGIN * len(result.cases)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    heights = [len(case.timings) * _BAR + _MARGIN for case in result.cases]
    panels = figure.subplots(
        len(result.cases), 1, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axes, case in zip(panels[:, 0], result.cases, strict=True):
        _panel(axes, case)
    panels[-1, 0].set_xlabel("milliseconds per run, median and 95 % interval (shorter is faster)")
    return figure


def _panel(axes: Axes, case: Case) -> None:
    places = range(len(case.timings))
    times = [timing.ms for timing in case.timings]
    axes.barh(places, [ms.median for ms in times], height=0.66, color=_colours(case.timings))
    axes.errorbar(
        [ms.median for ms in times],
        places,
        xerr=[[ms.median - ms.low for ms in times], [ms.high - ms.median for ms in times]],
        fmt="none",
        ecolor=INK,
        elinewidth=1,
        capsize=3,
    )
    for place, timing in zip(places, case.timings, strict=True):
        axes.annotate(
            _label(timing),
            (timing.ms.high, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
        )
    axes.set_yticks(list(places), [_short(timing.model) for timing in case.timings])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.5 * max(ms.high for ms in times))  # room for the labels
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_title(case_title(case), loc="left", fontsize="medium")


def _colours(timings: Sequence[Timing]) -> list[str]:
    return [
        GREY
        if timing.ratio is None or timing.ratio.low <= 1 <= timing.ratio.high
        else BLUE
        if timing.ratio.low > 1
        else ORANGE
        for timing in timings
    ]


def _label(timing: Timing) -> str:
    text = f"{milliseconds(timing.ms.median)} ms"
    if timing.ratio is None:
        return text
    return f"{text}: {ratio(timing.ratio.median)} as fast ({spread(timing.ratio)})"


def _short(name: str, most: int = 32) -> str:
    name = visible(name)
    return name if len(name) <= most else f"…{name[-most + 1 :]}"
