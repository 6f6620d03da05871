"""Tables and progress bars for a terminal, by rich."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dacconv.conversion.report import Report
from dacconv.reports import words as formatting
from dacconv.reports.sweep_words import Table as Levels
from dacconv.safe_text import safe_line

DISPENSABLE = ("dil.", "stride", "energy", "bytes moved", "kernel", "in", "out", "parameters")
"""Columns that a narrow terminal goes without, the first to go first."""


def print_table(report: Report) -> None:
    """A row per layer, the totals and, where something was split, what it saves."""
    console = Console(highlight=False)
    columns, rows = formatting.columns(report), formatting.cells(report)
    kept = fitting([columns, *rows, *formatting.summary_rows(report)], console.width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index in kept:
        text = index < formatting.TEXT_COLUMNS
        table.add_column(columns[index], justify="left" if text else "right", overflow="fold")
    for row, cells in zip(report.rows, rows, strict=True):
        style = "green" if row.rank is not None else None if row.eligible else "dim"
        table.add_row(*(_cell(cells[index]) for index in kept), style=style)
    for cells in formatting.summary_rows(report):
        table.add_row(*(_cell(cells[index]) for index in kept), style="bold")
    console.print(table)
    hidden = [name for i, name in enumerate(columns) if i not in kept]
    if hidden:
        console.print(f"(hidden for lack of width: {', '.join(hidden)})", style="dim")


def print_cells(rows: Sequence[Sequence[str]], marked: Sequence[bool]) -> None:
    """A header and rows of cells, the marked rows in colour."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(rows[0]):
        text = index < formatting.TEXT_COLUMNS
        table.add_column(_cell(name), justify="left" if text else "right", overflow="fold")
    for cells, mark in zip(rows[1:], marked, strict=True):
        table.add_row(*map(_cell, cells), style="green" if mark else None)
    Console(highlight=False).print(table)


def print_levels(table: Levels) -> None:
    """A table of a sweep, good cells green and bad ones red."""
    console = Console(highlight=False)
    rendered = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(table.columns):
        rendered.add_column(_cell(name), justify="right" if index else "left", overflow="fold")
    levels = table.levels or (((None,) * len(table.columns)),) * len(table.rows)
    for cells, level in zip(table.rows, levels, strict=True):
        rendered.add_row(
            *(Text(safe_line(c), style=_style(x)) for c, x in zip(cells, level, strict=True))
        )
    console.print(rendered)


def _cell(text: str) -> str:
    return escape(safe_line(text))


def _style(level: float | None) -> str:
    if level is None:
        return ""
    return "green" if level > 0.85 else "red" if level < 0.4 else "yellow"


def fitting(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """The indices of the columns that fit side by side into ``width`` characters."""
    widths = [
        max(len(safe_line(cell)) for cell in column) + 2 for column in zip(*rows, strict=True)
    ]
    kept = list(range(len(widths)))
    for name in DISPENSABLE:
        if sum(widths[index] for index in kept) <= width:
            break
        kept.remove(formatting.COLUMNS.index(name))
    return kept


class TerminalBars:
    """One bar per task, gone when it is done."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._bars.start()

    def show(self, task: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` steps of ``task`` are done."""
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total)
        self._bars.update(self._tasks[task], completed=done, total=total)

    def stop(self) -> None:
        """Take the bars away."""
        self._bars.stop()
