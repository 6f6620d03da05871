"""Where reports go: checked before the work, written after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dacconv.errors import UsageError
from dacconv.support.files import write_text
from dacconv.support.outputs import STDOUT, Output, check_outputs, report_outputs

if TYPE_CHECKING:
    from dacconv.conversion.report import Report
    from dacconv.timing.benchmark.result import Benchmark


def check_reports(
    reports: Mapping[str, Path], inputs: Iterable[Path] = (), *, force: bool = False
) -> tuple[Output, ...]:
    """The files that the reports go to; UsageError, before the work, where one cannot be written.

    ``reports`` are files by their kind, ``plots`` a folder. Jobs check the files again, with the
    files that the model consists of and those that they write themselves.
    """
    check_folders({kind: path for kind, path in reports.items() if kind == "plots"})
    if sum(path == STDOUT for path in reports.values()) > 1:
        kinds = " and ".join(f"--{name} -" for name, path in reports.items() if path == STDOUT)
        raise UsageError(f"{kinds} exclude each other")
    outputs = report_outputs(reports)
    check_outputs([o for o in outputs if o.option != "--plots"], inputs, force=force)
    return outputs


def check_folders(reports: Mapping[str, Path]) -> None:
    """Raise UsageError for a folder of reports that is none."""
    for kind, folder in reports.items():
        if folder == STDOUT:
            content = "figures" if kind == "plots" else "the reports of several models"
            raise UsageError(f"{content} need a folder, not -", where=f"--{kind}")
        if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
            content = "figures" if kind == "plots" else "the reports of several models"
            raise UsageError(f"is a file; {content} need a folder", where=f"--{kind} {folder}")


def plot_outputs(path: Path | None) -> tuple[Output, ...]:
    """The file of one figure; UsageError for a name that is neither PNG nor SVG."""
    if path is None:
        return ()
    if path.suffix not in (".png", ".svg"):
        raise UsageError("is neither .png nor .svg", where=f"--plot {path}")
    return (Output(path, "--plot"),)


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
