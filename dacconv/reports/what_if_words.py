"""What a network would cost with another width or resolution, as text."""

from __future__ import annotations

from collections.abc import Sequence

from dacconv.graph.types import Geometry
from dacconv.graph.what_if import WhatIf
from dacconv.reports import words as formatting

COLUMNS = ("layer", "in", "out", "output", "MACs", "parameters")


def lines(what_if: WhatIf) -> list[str]:
    """A title, a table with a row for each layer and the totals, and the notes."""
    return [title(what_if), "", *formatting.aligned(rows(what_if), 1), "", *summary(what_if)]


def title(what_if: WhatIf) -> str:
    """``what if width = 0.5, resolution = 160x160``."""
    questions = [f"width = {what_if.width:g}"] if what_if.width != 1 else []
    if what_if.resolution is not None:
        questions.append(f"resolution = {formatting.axes(what_if.resolution)}")
    return f"what if {', '.join(questions) or 'nothing changed'}"


def rows(what_if: WhatIf) -> list[tuple[str, ...]]:
    """A header, a row for each layer and the totals: as it is > as it would be."""
    cells: list[tuple[str, ...]] = [COLUMNS]
    cells += [
        (
            row.name,
            *(_change(row.before, row.after, name) for name in ("in", "out", "output")),
            formatting.change(*row.macs),
            formatting.change(*row.params),
        )
        for row in what_if.rows
    ]
    before, after = what_if.before, what_if.after
    macs = formatting.change(before.macs, after.macs)
    cells.append(("total", "", "", "", macs, formatting.change(before.params, after.params)))
    return cells


def summary(what_if: WhatIf) -> Sequence[str]:
    """The totals to the digit, and what has to be done for such a network."""
    before, after = what_if.before, what_if.after
    texts = [
        f"MACs {before.macs:,} > {after.macs:,} ({_share(before.macs, after.macs)}); parameters "
        f"{before.params:,} > {after.params:,} ({_share(before.params, after.params)}), those of "
        "BatchNorm included"
    ]
    return [*texts, *what_if.notes]


def _share(before: int | None, after: int | None) -> str:
    return formatting.share(after / before if before and after is not None else None)


def _change(before: Geometry | None, after: Geometry | None, name: str) -> str:
    was, now = _text(before, name), _text(after, name)
    return was if was == now else f"{was} > {now}"


def _text(g: Geometry | None, name: str) -> str:
    if g is None:
        return formatting.UNKNOWN
    if name == "in":
        return str(g.in_channels)
    if name == "out":
        return str(g.out_channels)
    return formatting.UNKNOWN if g.output_size is None else formatting.axes(g.output_size) or "-"
