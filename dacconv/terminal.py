"""Tables and progress bars for a terminal, by rich."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from dacconv import formatting
from dacconv.report import Report


def print_table(report: Report) -> None:
    """A row per layer, the totals and, where something was split, what it saves."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(formatting.COLUMNS):
        text = index < formatting.TEXT_COLUMNS
        table.add_column(name, justify="left" if text else "right", overflow="fold")
    for row in report.rows:
        style = "green" if row.rank is not None else None if row.eligible else "dim"
        table.add_row(*map(escape, formatting.row_cells(row)), style=style)
    table.add_section()
    for cells in formatting.summary_rows(report):
        table.add_row(*cells, style="bold")
    Console(highlight=False).print(table)


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
