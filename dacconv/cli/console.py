"""What a person sees. Results on stdout, progress and complaints on stderr.

rich is loaded only where there is a terminal: it costs a tenth of a second, and a pipe or a
CI log wants a line per layer and no escape codes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import typer

from dacconv.conversion.report import CONVENTION, Report
from dacconv.reports import benchmark_words as benchmark_text
from dacconv.reports import roofline_words as roofline_text
from dacconv.reports import words as formatting
from dacconv.reports.opening import opening
from dacconv.safe_text import safe_line, safe_lines

if TYPE_CHECKING:
    from pathlib import Path

    from dacconv.cli.terminal import TerminalBars
    from dacconv.jobs.batch import Result
    from dacconv.jobs.sweep import SweepOutcome
    from dacconv.timing.benchmark.result import Benchmark

DELAY_SECONDS = 1.0
RESULT_NUMBERS = ("MACs saved", "parameters saved", "error", "same top class", "verdict")


def print_report(report: Report, *, verbose: bool = False) -> None:
    """The whole report on stdout: with rich on a terminal, as plain text elsewhere.

    ``verbose`` adds the roofline and how costs are counted.
    """
    if lines := opening(report).lines:
        print_lines([*lines, ""])
    after = [*formatting.time_table(report), *formatting.facts(report)]
    if verbose:
        after += roofline_text.lines(report)
    if report.verification:
        after += formatting.verification(report.verification)
    elif report.unverified:
        after.append(f"not verified: {report.unverified}")
    if verbose:
        after.append(CONVENTION)
    if report.search:
        from dacconv.reports import search_words

        after += ["", *search_words.lines(report.search), ""]
    if report.provenance:
        origin = report.provenance
        after.append(f"dacconv {origin.version}, SHA-256 of {origin.source} {origin.sha256}")
    if report.what_if is not None:
        from dacconv.reports import what_if_words

        print_lines(what_if_words.lines(report.what_if))
    elif sys.stdout.isatty():
        from dacconv.cli.terminal import print_table

        print_table(report)
    else:
        print_lines(formatting.plain_table(report))
    print_lines(["", *after])


def print_benchmark(result: Benchmark) -> None:
    """The tables of a benchmark on stdout, and its warnings on stderr."""
    for title, rows, marked in benchmark_text.tables(result):
        if title:
            typer.secho(safe_line(title), bold=True)
        if sys.stdout.isatty():
            from dacconv.cli.terminal import print_cells

            print_cells(rows, marked)
        else:
            print_lines(formatting.aligned(rows, formatting.TEXT_COLUMNS))
        typer.echo()
    print_lines(benchmark_text.facts(result))
    for note in result.notes:
        typer.secho(safe_lines(f"warning: {note}"), err=True, fg="yellow")


def print_sweep(done: SweepOutcome, output: Path | None) -> None:
    """A sweep on stdout: its tables, coloured on a terminal, and what they say."""
    from dacconv.reports import sweep_words as sweep_text

    for line in done.notes:
        typer.echo(safe_line(line), err=True)
    print_lines(sweep_text.facts(done.sweep))
    for table in sweep_text.tables(done.sweep):
        print_lines(["", table.title])
        if sys.stdout.isatty():
            from dacconv.cli.terminal import print_levels

            print_levels(table)
        else:
            print_lines(formatting.aligned([table.columns, *table.rows], 1))
    print_lines(["", *sweep_text.advice(done.sweep, str(output or "RESULTS"))])
    if output is not None:
        typer.echo(safe_line(f"wrote {output}"))


def print_lines(lines: Sequence[str]) -> None:
    """Lines on stdout."""
    for line in lines:
        typer.echo(safe_line(line))


def print_missed(missed: Sequence[str]) -> None:
    """The gates that were missed, on stderr."""
    for line in missed:
        typer.secho("gate missed: ", err=True, nl=False, fg="red", bold=True)
        typer.echo(safe_line(line), err=True)


def print_results(results: Sequence[Result]) -> None:
    """A line per model on stdout, then what went wrong with each on stderr."""
    rows: list[tuple[str, ...]] = [("model", "status", "written", *RESULT_NUMBERS)]
    for result in results:
        report = result.outcome.report if result.outcome else None
        written = result.outcome.written if result.outcome else ()
        numbers = (formatting.UNKNOWN,) * len(RESULT_NUMBERS)
        if report is not None:
            check = report.verification
            numbers = (
                formatting.saved(report.before.macs, report.after.macs),
                formatting.saved(report.before.params, report.after.params),
                formatting.error(check.relative_error if check else None),
                formatting.share(check.agreement if check else None),
                opening(report).verdict.level,
            )
        name = str(written[0]) if written else "-"
        rows.append((result.task.name, result.status, name, *numbers))
    print_lines(formatting.aligned(rows, 3))
    for result in results:
        if result.error:
            known = result.error.startswith(str(result.task.source))
            message = result.error if known else f"{result.task.name}: {result.error}"
            typer.echo(safe_lines(message), err=True)
        if result.outcome:
            print_missed([f"{result.task.name}: {m}" for m in result.outcome.report.missed])


class Bars:
    """Progress bars on stderr, for work of more than a second, and only on a terminal."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._shown: TerminalBars | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown:
            self._shown.stop()

    def __call__(self, task: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` steps of ``task`` are done."""
        if self._shown is None and sys.stderr.isatty():
            if time.monotonic() - self._started < DELAY_SECONDS:
                return
            from dacconv.cli.terminal import TerminalBars

            self._shown = TerminalBars()
        if self._shown:
            self._shown.show(task, done, total)
