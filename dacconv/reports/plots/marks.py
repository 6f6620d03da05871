"""Markers and colours of series, and layer names along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dacconv.safe_text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
ORDERED = "viridis"
"""The colours of ordered series (ranks, layers): monotonic in lightness, so readable in grey."""
TICKS = 45
"""The largest number of layer names along an axis."""


def marker(index: int) -> str:
    """The marker of the series with that index."""
    return MARKERS[index % len(MARKERS)]


def shades(count: int) -> list[tuple[float, ...]]:
    """``count`` RGBA colours from dark to light, all readable on white."""
    import matplotlib

    colours = matplotlib.colormaps[ORDERED]
    return [tuple(colours(0.85 * index / max(count - 1, 1))) for index in range(count)]


def short(name: str, most: int = 22) -> str:
    """The name, without the middle part if it has more than ``most`` characters."""
    name = visible(name)
    head = most // 3
    return name if len(name) <= most else f"{name[:head]}…{name[head + 1 - most :]}"


def layer_ticks(axes: Axes, names: Sequence[str], *, vertical: bool = False) -> None:
    """Write layer names along an axis at 0, 1, 2, ..."""
    places = list(range(0, len(names), -(-len(names) // TICKS)))
    labels = [short(names[place]) for place in places]
    if vertical:
        axes.set_yticks(places, labels, fontsize=7.5)
    else:
        axes.set_xticks(places, labels, fontsize=7.5, rotation=90)
