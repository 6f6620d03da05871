"""What a person sees: tables and messages. Results on stdout, progress on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from dacconv import formatting
from dacconv.report import CONVENTION, Report, Verification

PIPE_WIDTH = 400
"""Where there is no terminal, lines are not folded: a table stays a line per layer."""

DELAY_SECONDS = 1.0


def stdout() -> Console:
    """The console for results; plain text when it is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def print_report(report: Report, console: Console) -> None:
    """The whole report."""
    print_table(report, console)
    for line in formatting.facts(report):
        console.print(escape(line), style="dim" if line.startswith("not counted") else None)
    if report.verification:
        print_verification(report.verification, console)
    elif report.unverified:
        console.print(f"[yellow]not verified[/]: {escape(report.unverified)}")
    console.print(CONVENTION, style="dim")
    if report.provenance:
        origin = report.provenance
        console.print(
            f"dacconv {origin.version}, SHA-256 of {escape(origin.source)} {origin.sha256}",
            style="dim",
        )


def print_table(report: Report, console: Console) -> None:
    """A row per layer, the totals and, where something was split, what it saves."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(formatting.COLUMNS):
        table.add_column(
            name,
            justify="left" if index < formatting.TEXT_COLUMNS else "right",
            no_wrap=index >= formatting.TEXT_COLUMNS,
            overflow="fold",
        )
    for row in report.rows:
        style = "green" if row.rank is not None else None if row.eligible else "dim"
        table.add_row(*map(escape, formatting.row_cells(row)), style=style)
    table.add_section()
    table.add_row(*formatting.total_cells(report), style="bold")
    if report.plan is not None:
        table.add_row(*formatting.saved_cells(report), style="bold")
    console.print(table)
    console.print()


def print_verification(check: Verification, console: Console) -> None:
    """The verification, in sentences."""
    for line in formatting.verification(check):
        console.print(escape(line))


def print_missed(missed: Sequence[str]) -> None:
    """The gates that were missed, on stderr."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for line in missed:
        console.print(f"[bold red]gate missed[/]: {escape(line)}")


class Bars:
    """Progress bars on stderr, for work of more than a second, and only on a terminal."""

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
        self._started = time.monotonic()
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown:
            self._bars.stop()

    def __call__(self, task: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` steps of ``task`` are done."""
        if not self._bars.console.is_terminal:
            return
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total)
        self._bars.update(self._tasks[task], completed=done, total=total)
        if not self._shown and time.monotonic() - self._started > DELAY_SECONDS:
            self._bars.start()
            self._shown = True
