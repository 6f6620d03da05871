"""A sweep as text and tables: the most sensitive layers, and the best points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dacconv.graph.plan_json import rank_text
from dacconv.graph.types import Choice, Rank
from dacconv.reports import words as formatting
from dacconv.support.numbers import three_digits
from dacconv.sweeps.fronts import front, knee
from dacconv.sweeps.points import DAC, FIRST, LAST, SINGLE
from dacconv.sweeps.results import SHARES, TITLES, PointResult, Quality, Sweep

MOST = 12
"""The largest number of rows in the table of the best points."""


@dataclass(frozen=True, slots=True)
class Table:
    """A heading, the names of the columns, and rows; the first column is text.

    ``levels`` rate every cell from 0 (worst) to 1 (best); None where the value is not known.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    levels: tuple[tuple[float | None, ...], ...] = ()


def facts(sweep: Sweep) -> list[str]:
    """The model, the inputs and the original's measures, a sentence each."""
    before, header = sweep.original, sweep.header
    lines = [
        f"{len(sweep.points)} points of {header.get('source')}: "
        f"{formatting.number(before.macs)} MACs, {formatting.number(before.params)} parameters",
        f"{header.get('inputs')}",
    ]
    if before.task:
        measures = ", ".join(f"{name} {_text(name, value)}" for name, value in before.task.items())
        lines.append(f"the original: {measures}")
    if sweep.methods not in ((), (DAC,)):
        lines.append(f"split by {', '.join(sweep.methods)}")
    return lines


def tables(sweep: Sweep) -> list[Table]:
    """The tables of a sweep: layers by ranks, first and last k by ranks, and the best points."""
    quality = sweep.quality
    name = quality.title
    tables = [
        _by_rank(
            f"{name}, one layer split at a time", sweep.of_mode(SINGLE), sweep, quality,
            "layer", lambda row: row.layer,
        ),
        *(
            _by_rank(
                f"{name}, the {mode.partition('-')[0]} k layers split", sweep.of_mode(mode), sweep,
                quality, "k", lambda row: row.k,
            )
            for mode in (FIRST, LAST)
        ),
        _best(sweep, quality),
    ]  # fmt: skip
    return [table for table in tables if table.rows]


def advice(sweep: Sweep, output: str) -> list[str]:
    """The most and least sensitive layers, the knee, and the command that converts to a point."""
    quality, lines = sweep.quality, list[str]()
    mean = _layer_means(sweep, quality)
    if len(mean) > 2:
        ordered = sorted(mean, key=lambda name: mean[name] if quality.more else -mean[name])
        some = min(3, len(ordered) // 2)
        lines.append(f"most sensitive, over all ranks: {', '.join(ordered[:some])}")
        lines.append(f"least sensitive: {', '.join(reversed(ordered[-some:]))}")
    bend = knee(sweep.rows, sweep.macs_share, quality)
    if bend is not None:
        lines.append(
            f"knee: {bend.label} leaves {formatting.share(sweep.macs_share(bend))} of the MACs, "
            f"{quality.title} {_text(quality.name, quality.value(bend))}"
        )
    source = sweep.header.get("source")
    command = f"dacconv convert {source} --from-sweep {output} --pick 'macs<=0.8'"
    lines.append(f"to convert to a point: {command}")
    return lines


def _by_rank(
    title: str,
    rows: Sequence[PointResult],
    sweep: Sweep,
    quality: Quality,
    first: str,
    key: Callable[[PointResult], object],
) -> Table:
    """Rows by layer or by k, columns by rank."""
    ranks = sorted({row.rank for row in rows if row.rank is not None})
    keys = dict.fromkeys(key(row) for row in rows)
    by_cell = {(key(row), row.rank): row for row in rows}
    worths = [worth for row in rows if (worth := quality.worth(row)) is not None]
    low, high = min(worths, default=0.0), max(worths, default=0.0)
    cells, levels = [], []
    for name in keys:
        line = [by_cell.get((name, rank)) for rank in ranks]
        cells.append(
            (str(name), *("" if r is None else _text(quality.name, quality.value(r)) for r in line))
        )
        rated = [None if r is None else quality.worth(r) for r in line]
        levels.append(
            (None, *(None if w is None or high == low else (w - low) / (high - low) for w in rated))
        )
    columns = (first, *(rank_title(sweep, rank) for rank in ranks))
    return Table(title, columns, tuple(cells), tuple(levels))


def rank_title(sweep: Sweep, rank: int) -> str:
    """``rank 2``, or ``spatial rank 2`` in a sweep of one method other than DAC."""
    method = sweep.methods[0] if len(sweep.methods) == 1 else DAC
    return f"rank {rank}" if method == DAC else f"{method} rank {rank}"


def splits_text(choices: Sequence[Choice]) -> str:
    """The methods of a plan with their ranks: ``dac 1 to 3, spatial 4``."""
    ranks: dict[str, list[Rank]] = {}
    for choice in choices:
        ranks.setdefault(choice.method, []).append(choice.rank)
    parts = []
    for method, used in ranks.items():
        low, high = rank_text(min(used)), rank_text(max(used))
        parts.append(f"{method} {low}" if low == high else f"{method} {low} to {high}")
    return ", ".join(parts) or formatting.UNKNOWN


def _best(sweep: Sweep, quality: Quality) -> Table:
    """The points than which no cheaper one is as good; the knee is marked."""
    best = [row for row in front(sweep.rows, sweep.macs_share, quality) if row in sweep.points]
    if len(best) > MOST:  # evenly, with the ends
        best = [best[round(i * (len(best) - 1) / (MOST - 1))] for i in range(MOST)]
    bend = knee(sweep.rows, sweep.macs_share, quality)
    if bend is not None and bend not in best:
        best = sorted([*best, bend], key=lambda row: row.macs or 0)
    timed = any(row.latency for row in best)
    columns = ("point", "splits", "MACs left", "parameters left", "output error", "same top class")
    names = tuple(sweep.original.task)
    rows = tuple(
        (
            f"{row.label}{' (knee)' if row is bend else ''}",
            splits_text(row.choices),
            formatting.share(sweep.macs_share(row)),
            formatting.share(sweep.params_share(row)),
            formatting.error(row.output_error),
            formatting.share(row.agreement),
            *(_text(name, row.task.get(name)) for name in names),
            *((f"{row.latency.speedup:.2f} x" if row.latency else formatting.UNKNOWN,) * timed),
        )
        for row in best
    )
    more = (*(TITLES.get(name, name) for name in names), *(("faster",) * timed))
    return Table("best for their cost", (*columns, *more), rows)


def _layer_means(sweep: Sweep, quality: Quality) -> dict[str, float]:
    """The mean quality of each layer over its ranks, split alone."""
    values: dict[str, list[float]] = {}
    for row in sweep.of_mode(SINGLE):
        value = quality.value(row)
        if row.layer is not None and value is not None:
            values.setdefault(row.layer, []).append(value)
    return {name: sum(each) / len(each) for name, each in values.items()}


def _text(name: str, value: float | None) -> str:
    if value is None:
        return formatting.UNKNOWN
    return formatting.share(value) if name in SHARES else f"{three_digits(value)}"
