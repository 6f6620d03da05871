"""Where reports go: checked before the work, written after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dacconv.errors import UsageError
from dacconv.support.files import require_folder, write_text

if TYPE_CHECKING:
    from dacconv.conversion.report import Report
    from dacconv.timing.benchmark.result import Benchmark

STDOUT = Path("-")


def check_reports(reports: Mapping[str, Path], *, folders: bool = False) -> None:
    """Raise UsageError, before the work, where the reports cannot be written.

    ``reports`` are files by their kind, ``plots`` a folder. With ``folders`` all are folders,
    which are created.
    """
    folder = reports.get("plots")
    if folder == STDOUT:
        raise UsageError("figures need a folder, not -", where="--plots")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError("is a file; figures need a folder", where=f"--plots {folder}")
    for name, path in reports.items():
        if not folders and name != "plots":
            require_folder(path, f"--{name} {path}")
    if sum(path == STDOUT for path in reports.values()) > 1:
        kinds = " and ".join(f"--{name} -" for name, path in reports.items() if path == STDOUT)
        raise UsageError(f"{kinds} exclude each other")


def check_plot(path: Path | None) -> None:
    """Raise UsageError where a figure cannot be written."""
    if path is None:
        return
    if path.suffix not in (".png", ".svg"):
        raise UsageError("is neither .png nor .svg", where=f"--plot {path}")
    require_folder(path, f"--plot {path}")


def write_reports(report: Report, reports: Mapping[str, Path]) -> None:
    """Write the report in every kind that is asked for."""
    for name, target in reports.items():
        if name == "plots":
            from dacconv.reports.plots import report_figures, save_all

            save_all(report_figures(report), target)
        else:
            from dacconv.reports import EXPORTERS

            write_text_to(target, EXPORTERS[name](report))


def bench_exporter(name: str) -> Callable[[Benchmark], str]:
    """What renders a benchmark as a report of that kind."""
    from dacconv.reports import benchmark_words

    if name == "html":
        from dacconv.reports import bench_page

        return bench_page.render
    return benchmark_words.EXPORTERS[name]


def write_text_to(target: Path, text: str) -> None:
    """Write text to a file, or to stdout for ``-``."""
    if target == STDOUT:
        typer.echo(text, nl=False)
    else:
        write_text(target, text)
