"""A packed or rounded model in words."""

from __future__ import annotations

from dacconv.packing.choice import RoundedRow
from dacconv.packing.result import PackResult
from dacconv.reports import words
from dacconv.reports.opening import verification_opening

COLUMNS = ("weight", "numbers", "bits", "levels", "zeros", "output error")


def lines(result: PackResult) -> list[str]:
    """The sizes, the verdict, what happened to each weight, and what was written."""
    text: list[str] = []
    if result.rows:
        text += [*words.aligned([COLUMNS, *map(_cells, result.rows)], 1), ""]
    text += [f"note: {note}" for note in result.notes]
    if result.verification is not None:
        text += verification_opening(result.verification).lines[:1]
        text += words.verification(result.verification)
    elif result.unverified:
        text.append(f"not verified: {result.unverified}")
    sizes = f"{result.after:,} of {result.before:,} bytes"
    if result.after < result.before:
        sizes += f", {result.before / result.after:.2f} x smaller"
    names = ", ".join(map(str, result.written))
    return [*text, f"wrote {names}: {sizes}" if names else sizes]


def _cells(row: RoundedRow) -> tuple[str, ...]:
    damage = "?" if row.damage is None else f"{row.damage**0.5:.3g}"
    return (
        row.name,
        f"{row.count:,}",
        f"{row.bits:.2f}",
        str(row.levels),
        f"{100 * row.zeros:.0f} %",
        damage,
    )
