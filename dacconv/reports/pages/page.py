"""A page as a value, and its HTML.

The file that comes out needs no network: style and script are in it, pictures are inline SVG,
and a Content-Security-Policy forbids everything else, so that no text of a model can load or
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
"""What was done to a layer: split, made of several, merged into another, left, not splittable."""

THEMED = {
    "#1f2328": "ink",
    "#59636e": "soft",
    "#d1d9e0": "line",
    "#ffffff": "paper",
    "#0072b2": "split",
    "#009e73": "merged",
    "#e69f00": "left",
    "#9aa4ae": "fixed",
}
"""Colours of pictures that follow the page from light to dark, and their names in the style."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One number of the headline: ``61.2 %``, ``of the MACs saved``, ``40.6 M to 15.7 M``."""

    value: str
    label: str
    note: str = ""
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """A layer in the strip. ``left`` is the share of its cost that is left, between 0 and 1."""

    text: str
    kind: Kind
    left: float = 1.0
    target: str = ""


@dataclass(frozen=True, slots=True)
class Strip:
    """The layers side by side, and what their colours mean."""

    tiles: tuple[Tile, ...]
    legend: Mapping[Kind, str]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; numbers stand to the right and are sorted as numbers."""

    name: str
    number: bool = True


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell: what it shows, and what it is sorted by where that is something else."""

    text: str
    sort: float | str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table; ``kind`` colours its mark, which ``note`` puts in words.

    ``number`` stands before the first cell; a tile's target is the ``anchor`` of a row.
    """

    cells: tuple[Cell, ...]
    kind: Kind = ""
    note: str = ""
    anchor: str = ""
    number: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that can be sorted by every column; ``footer`` rows stay below."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    footer: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as SVG text made by dacconv, and what it shows, in a sentence.

    ``themed`` lets it follow the page from light to dark; else it stays on white.
    """

    svg: str
    caption: str
    themed: bool = True


@dataclass(frozen=True, slots=True)
class Pictures:
    """Figures, beside each other where there is room."""

    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Bullets:
    """Sentences."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Names that share a reason."""

    title: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Groups:
    """Names by the reason that they share."""

    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Terms:
    """Pairs of a term and what it is."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Text to be copied, folded away until it is asked for."""

    title: str
    text: str


Block = Strip | Table | Pictures | Bullets | Groups | Terms | Code


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """A report to look at: opening lines, the headline facts, what went wrong, and sections."""

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
    """The page as one HTML file. Every text of the page is escaped and made visible."""
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
    """A value as the template shows it: text made visible, markup as it is."""
    return visible(value) if type(value) is str else value


def _resource(name: str) -> str:
    return files("dacconv.reports.pages").joinpath(name).read_text(encoding="utf-8")


def _inline(picture: Picture) -> str:
    """The ``<svg>`` element alone, its text and grid in the colours of the page."""
    svg = picture.svg[picture.svg.index("<svg") :]
    if size := re.match(r'<svg[^>]*? width="([\d.]+)pt"', svg):
        points = float(size[1])  # neither so small nor so large that its text is hard to read
        style = f"min-width:{0.95 * points:.0f}px;max-width:{1.8 * points:.0f}px"
        svg = f'<svg style="{style}"{svg[4:]}'
    if not picture.themed:
        return svg
    return re.sub(
        "|".join(THEMED), lambda m: f"var(--{THEMED[m[0].lower()]})", svg, flags=re.IGNORECASE
    )
