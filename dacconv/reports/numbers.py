"""Numbers as words: with units, as shares, before and after."""

from __future__ import annotations

from collections.abc import Iterable

from dacconv.support.numbers import three_digits

UNKNOWN = "?"


def number(value: float | None) -> str:
    """Three digits and a unit prefix: ``1.85 G``; ``?`` for None."""
    if value is None:
        return UNKNOWN
    for limit, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit * 0.9995:
            return f"{_digits(value / limit)}{unit}"
    return f"{value:g}"


def share(value: float | None) -> str:
    """A share as a percentage with one decimal: ``42.7 %``."""
    return UNKNOWN if value is None else f"{100 * value:.1f} %"


def error(value: float | None) -> str:
    """A relative error with three significant digits."""
    return UNKNOWN if value is None else three_digits(value)


def change(before: float | None, after: float | None) -> str:
    """``before > after`` with units, or the one number where nothing changed."""
    was, now = number(before), number(after)
    return was if was == now else f"{was} > {now}"


def saved(before: float | None, after: float | None) -> str:
    """The share saved, ``?`` where a side is unknown."""
    if before is None or after is None or not before:
        return UNKNOWN
    return share(1 - after / before).replace("-0.0 %", "0.0 %")


def axes(values: Iterable[int]) -> str:
    """``3x3``; one number where all axes are the same and it is no kernel."""
    return "x".join(map(str, values))


def bytes_text(size: int) -> str:
    """``1.10 MB``: bytes in powers of ten, as file managers show them."""
    return f"{number(size)}B"


def listed(names: list[str], limit: int = 4) -> str:
    """Some names, and how many more there are."""
    if len(names) <= limit:
        return ", ".join(names)
    return f"{', '.join(names[:limit])} and {len(names) - limit} more"


def _digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")
