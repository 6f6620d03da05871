"""How the saving was found, in words, where it was left to a search."""

from __future__ import annotations

from collections.abc import Sequence

from dacconv.graph.findings import Search
from dacconv.reports.words import UNKNOWN, aligned

COLUMNS = ("tried", "verdict", "MACs left", "speed", "")


def summary(search: Search) -> str:
    """The goal, and how it was searched for."""
    count = len(search.trials)
    tried = f"{count} budget{'' if count == 1 else 's'} tried in {search.seconds:.0f} s"
    more = "" if search.in_time else "; --seconds searches for longer"
    return f"searched for the largest saving that gives {search.goal}: {tried}{more}"


def rows(search: Search) -> list[Sequence[str]]:
    """A header, and a row for every budget that was tried."""
    return [
        COLUMNS,
        *(
            (
                trial.options,
                trial.level or "out of reach",
                UNKNOWN if trial.left is None else f"{100 * trial.left:.1f} %",
                UNKNOWN if trial.speedup is None else f"{trial.speedup:.2f} x",
                "reached" if trial.reached else "",
            )
            for trial in search.trials
        ),
    ]


def lines(search: Search) -> list[str]:
    """The summary and the table, as plain text."""
    return [summary(search), *aligned(rows(search), 2)]
