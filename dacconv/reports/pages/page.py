"""A page as a value, and its HTML.

The HTML file needs no network: style and script are in it, pictures are inline SVG, and a
Content-Security-Policy forbids everything else, so that no text of a model can load or
run anything. The same page gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from dacconv.safe_text import visible

Tone = Literal["", "good", "bad", "unknown"]
Kind = Literal["", "split", "merged", "gone", "left", "fixed"]
"""The change of a layer: split, merged from several, merged into another, not split, or not
splittable by any method."""

THEMED = {
    "#1f2328": "ink",
    "#59636e": "soft",
    "#d1d9e0": "line",
    "#ffffff": "paper",
    "#0072b2": "split",
    "#009e73": "merged",
    "#e69f00": "orange",
    "#9aa4ae": "fixed",
}
"""Colours of pictures that change with the light or dark page, and their CSS variables."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A headline fact, as ``61.2 %``, ``of the MACs saved``, ``40.6 M to 15.7 M``."""

    value: str
    label: str
    note: str = ""
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """A layer in the strip. ``left`` is its remaining share of the cost, between 0 and 1."""

    text: str
    kind: Kind
    left: float = 1.0
    target: str = ""


@dataclass(frozen=True, slots=True)
class Strip:
    """The layers side by side, with a legend of their colours."""

    tiles: tuple[Tile, ...]
    legend: Mapping[Kind, str]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; numbers are aligned to the right and sorted as numbers."""

    name: str
    number: bool = True


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell: its text, and its sort key if that is not the text."""

    text: str
    sort: float | str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table; ``kind`` is the colour of its mark, and ``note`` the text of the mark.

    ``number`` is printed before the first cell; a tile's target is the ``anchor`` of a row.
    """

    cells: tuple[Cell, ...]
    kind: Kind = ""
    note: str = ""
    anchor: str = ""
    number: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that can be sorted by every column; ``footer`` rows are always the last."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    footer: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as SVG text from dacconv, and its caption.

    With ``themed`` its colours change with the light or dark page; else it stays on white.
    """

    svg: str
    caption: str
    themed: bool = True


@dataclass(frozen=True, slots=True)
class Pictures:
    """Figures, side by side if the page is wide enough."""

    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Bullets:
    """A bullet list of sentences."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Names that share a reason."""

    title: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Groups:
    """Names, grouped by reason."""

    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Terms:
    """Pairs of a term and its description."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Text to be copied, collapsed at first."""

    title: str
    text: str


Block = Strip | Table | Pictures | Bullets | Groups | Terms | Code


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and its blocks."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """A report as a page: opening lines, headline facts, warnings (``alarms``) and sections."""

    title: str
    subtitle: str
    facts: tuple[Fact, ...]
    sections: tuple[Section, ...]
    alarms: tuple[str, ...] = ()
    opening: tuple[str, ...] = ()
    footer: str = ""


def from_text(rows: Sequence[Sequence[str]]) -> Table:
    """A table of text, its header first, that sorts by the number that a cell begins with."""
    columns = tuple(Column(name, index > 0) for index, name in enumerate(rows[0]))
    cells = [(Cell(name, n), *map(_cell, rest)) for n, (name, *rest) in enumerate(rows[1:])]
    return Table(columns, tuple(Row(each) for each in cells))


def _cell(text: str) -> Cell:
    word = text.partition(" ")[0]
    try:
        return Cell(text, float(word))
    except ValueError:
        return Cell(text)


def render(page: Page) -> str:
    """The page as one HTML file. All text is escaped; hidden characters become visible."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("dacconv.reports.pages", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = lambda picture: Markup(_inline(picture))
    environment.filters["lines"] = lambda text: Markup("\n").join(map(visible, text.split("\n")))
    environment.filters["kind"] = lambda block: type(block).__name__.lower()
    style, script = _resource("page.css"), _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.jinja").render(
        page=page, style=Markup(style), script=Markup(script), digest=digest
    )


def _shown(value: object) -> object:
    """A value as the template prints it: text with hidden characters escaped, markup unchanged."""
    return visible(value) if type(value) is str else value


def _resource(name: str) -> str:
    return files("dacconv.reports.pages").joinpath(name).read_text(encoding="utf-8")


def _inline(picture: Picture) -> str:
    """The ``<svg>`` element, with text and grid in the colours of the page."""
    svg = picture.svg[picture.svg.index("<svg") :]
    if size := re.match(r'<svg[^>]*? width="([\d.]+)pt"', svg):
        points = float(size[1])  # limits the scale, so that the text is readable
        style = f"min-width:{0.95 * points:.0f}px;max-width:{1.8 * points:.0f}px"
        svg = f'<svg style="{style}"{svg[4:]}'
    if not picture.themed:
        return svg
    return re.sub(
        "|".join(THEMED), lambda m: f"var(--{THEMED[m[0].lower()]})", svg, flags=re.IGNORECASE
    )
