"""Selecting one point of a sweep: by constraints on its numbers, by name, or as the knee."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from dacconv.errors import UsageError
from dacconv.sweeps.fronts import knee
from dacconv.sweeps.results import PointResult, Quality, Sweep

KNEE = "knee"
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_CLAUSE = re.compile(r"(?P<name>[^<>=]+?)\s*(?P<comparison><=|>=|<|>|=)\s*(?P<value>[^<>=]+)")
_SYNTAX = (
    "as in 'macs<=0.5', 'params<=50%, agreement>=0.9', 'macs<=0.5, max top1', 'knee', or the "
    "name of a point"
)


def pick(sweep: Sweep, text: str) -> PointResult:
    """The best point within the constraints of ``text``, judged by ``Sweep.quality``.

    Constraints are separated by commas; ``macs`` and ``params`` are shares of the original's.
    ``max NAME`` or ``min NAME`` judges by another number. Of equal points, the one with the fewest
    MACs is returned. ``knee`` is the knee of the front of quality against MACs; the name of a
    point selects that point.

    Raises:
        UsageError: ``text`` is not a constraint, has an unknown name, or no point fulfils it.
    """
    where = f"--pick {text}"
    named = [row for row in sweep.points if row.label == text.strip()]
    if named:
        return named[0]
    if text.strip() == KNEE:
        return _knee(sweep, where)
    quality, tests = sweep.quality, []
    for clause in text.split(","):
        words = clause.split()
        if len(words) == 2 and words[0] in ("max", "min"):
            quality = Quality(words[1], words[0] == "max", _measure(sweep, words[1], where))
        else:
            tests.append(_test(sweep, clause.strip(), where))
    rows = [row for row in sweep.points if all(test(row) for test in tests)]
    if not rows:
        raise UsageError(
            f"none of the {len(sweep.points)} points is within this",
            where=where,
            hint=_range_text(sweep),
        )
    return _best(sweep, rows, quality, where)


def _best(sweep: Sweep, rows: Sequence[PointResult], quality: Quality, where: str) -> PointResult:
    measured = [(worth, row) for row in rows if (worth := quality.worth(row)) is not None]
    if not measured:
        raise UsageError(f"{quality.name} is not known of any of these points", where=where)

    def order(entry: tuple[float, PointResult]) -> tuple[float, float, int]:
        share = sweep.macs_share(entry[1])
        return -entry[0], float("inf") if share is None else share, entry[1].params

    return min(measured, key=order)[1]


def _knee(sweep: Sweep, where: str) -> PointResult:
    point = knee(sweep.rows, sweep.macs_share, sweep.quality)
    if point is None:
        raise UsageError("the front of quality against MACs has no knee", where=where)
    return point


def _test(sweep: Sweep, clause: str, where: str) -> Callable[[PointResult], bool]:
    match = _CLAUSE.fullmatch(clause)
    if match is None:
        near = get_close_matches(clause, [row.label for row in sweep.points], n=3, cutoff=0.6)
        hint = f"{_SYNTAX}; the nearest are {', '.join(near)}" if near else _SYNTAX
        raise UsageError(f"'{clause}' is not a constraint", where=where, hint=hint)
    measure = _measure(sweep, match["name"].strip(), where)
    compare, text = _COMPARE[match["comparison"]], match["value"].strip()
    try:
        limit = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise UsageError(f"'{text}' is not a number", where=where, hint=_SYNTAX) from error

    def test(row: PointResult) -> bool:
        value = measure(row)
        return value is not None and compare(value, limit)

    return test


def _measure(sweep: Sweep, name: str, where: str) -> Callable[[PointResult], float | None]:
    measures = sweep.measures()
    if name not in measures:
        raise UsageError(f"there is no '{name}'", where=where, hint=f"known: {', '.join(measures)}")
    return measures[name]


def _range_text(sweep: Sweep) -> str:
    """The range of MACs of the points, as a hint where no point fulfils the constraints."""
    shares = [share for row in sweep.points if (share := sweep.macs_share(row)) is not None]
    if not shares:
        return _SYNTAX
    return f"they leave {min(shares):.1%} to {max(shares):.1%} of the MACs"
