"""The style of all figures, and writing figures to files.

The colours are Okabe and Ito's, which colour-blind people can distinguish; ``pages`` replaces those
of text and background on a dark page. Figures are created without pyplot, so no display is needed,
and the same figure gives the same bytes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, LINE, PAPER, GREY = "#1f2328", "#59636e", "#d1d9e0", "#ffffff", "#9aa4ae"
BLUE, GREEN, ORANGE, RED, PINK, SKY = (
    "#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#56b4e9",
)  # fmt: skip
WIDTH, HEIGHT = 5.0, 3.0
"""Inches: narrow enough for the text to be readable on a phone."""

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": PAPER,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "savefig.dpi": 160,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "dacconv",
}


@contextmanager
def style() -> Iterator[None]:
    """The style of all figures, as a context manager or a decorator of functions that draw."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes."""
    figure, (axes,) = new_figures(width, height, 1)
    return figure, axes


def new_figures(width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    """An empty figure with pairs of axes side by side, which share the vertical one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, sharey=True, squeeze=False)
    return figure, list(axes[0])


def svg(figure: Figure) -> str:
    """The figure as SVG text, without a date."""
    text = io.StringIO()
    _write(figure, text, "svg", dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return text.getvalue()


def save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write ``name.png`` and ``name.svg`` into ``folder``; return both paths."""
    from dacconv.support.files import replacing

    paths = folder / f"{name}.png", folder / f"{name}.svg"
    with replacing(*paths) as (png, vector):
        _write(figure, png, "png", {"Software": None})
        vector.write_text(svg(figure), encoding="utf-8")
    return paths


def save_all(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write figures by their names into ``folder``, which is created if it is missing.

    Raises:
        WriteError: a file or the folder cannot be written.
    """
    from dacconv.support.files import as_write_error

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise as_write_error(error, folder) from error
    return [path for name, figure in figures.items() for path in save(figure, folder, name)]


def save_as(figure: Figure, path: Path) -> None:
    """Write the figure to ``path``, as SVG if that is its suffix, else as PNG."""
    from dacconv.support.files import replacing

    with replacing(path) as (temporary,):
        if path.suffix == ".svg":
            temporary.write_text(svg(figure), encoding="utf-8")
        else:
            _write(figure, temporary, "png", {"Software": None})


def _write(
    figure: Figure, target: Path | io.StringIO, form: str, metadata: dict[str, None]
) -> None:
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # in names of layers
        figure.savefig(target, format=form, metadata=metadata)
