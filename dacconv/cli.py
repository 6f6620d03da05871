"""The command line: parses, calls the jobs, prints, maps errors to exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dacconv import __version__, options
from dacconv.errors import DacconvError, UsageError

if TYPE_CHECKING:
    from dacconv.config import Settings
    from dacconv.jobs import Outcome
    from dacconv.report import Report

STDOUT = Path("-")
EXIT_CODES = (
    "Exit codes: 0 done; 1 done, but a gate was missed (nothing is written unless --keep); "
    "2 wrong usage; 3 input not readable or not supported."
)

model_argument = click.argument("model", type=options.FILE)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(__version__, message="dacconv %(version)s")
def app() -> None:
    """Make trained convolutional networks smaller and faster, without data.

    MODEL is an ONNX file, a torch.export program (.pt2), a state dict (.pt, .pth, .th,
    .safetensors) or a pickled module.
    """


@app.command(cls=options.Command)
@model_argument
@options.SOURCE
@options.JSON
@options.MARKDOWN
@options.HTML
def inspect(model: Path, **given: Any) -> None:
    """List every layer in order of execution: sizes, costs, and why one cannot be split."""
    from dacconv import pipeline
    from dacconv.jobs import open_with

    reports = _reports(given)
    _show(pipeline.inspect(open_with(model, _settings(given))), reports)


@app.command(cls=options.Command, epilog=EXIT_CODES)
@model_argument
@options.CHOICE
@options.CALIBRATE
@options.SOURCE
@options.VERIFY
@options.RUN
@options.SAVING
@options.AGREEMENT
@options.TARGET
@options.DRY_RUN
@options.JSON
@options.MARKDOWN
@options.HTML
def convert(
    model: Path,
    config: Path | None,
    output: Path | None,
    force: bool,
    keep: bool,
    dry_run: bool,
    **given: Any,
) -> None:
    """Split the chosen conv layers and write the lighter model with its report.

    The result is written to MODEL.dac.SUFFIX unless -o names another file.
    """
    from dacconv import console, jobs

    reports, settings = _reports(given), _settings(given, config)
    with console.Bars() as bars:
        if dry_run:
            outcome = jobs.dry_run(model, settings, output=output, force=force, progress=bars)
        else:
            outcome = jobs.convert_file(
                model, settings, output=output, force=force, keep=keep, progress=bars
            )
    _finish(outcome, reports)


@app.command(cls=options.Command, epilog=EXIT_CODES)
@model_argument
@options.SOURCE
@options.VERIFY
@options.RUN
@options.TARGET
@options.JSON
@options.MARKDOWN
@options.HTML
def fuse(
    model: Path,
    output: Path | None,
    force: bool,
    keep: bool,
    **given: Any,
) -> None:
    """Merge BatchNorm, parallel branches and chains into single convs, without loss.

    The result is written to MODEL.fused.SUFFIX unless -o names another file.
    """
    from dacconv import console, jobs

    reports, settings = _reports(given), _settings(given)
    with console.Bars() as bars:
        outcome = jobs.fuse_file(
            model, settings, output=output, force=force, keep=keep, progress=bars
        )
    _finish(outcome, reports)


@app.command(cls=options.Command, epilog=EXIT_CODES)
@click.argument("original", type=options.FILE)
@click.argument("converted", type=options.FILE)
@options.SOURCE
@options.RUN
@options.AGREEMENT
@options.JSON
@options.HTML
def check(original: Path, converted: Path, **given: Any) -> None:
    """Run two models on the same seeded inputs: do they agree, and which is faster."""
    from dacconv import console, formatting, jobs

    reports, settings = _reports(given), _settings(given)
    with console.Bars() as bars:
        verification, missed = jobs.compare_files(original, converted, settings, bars)
    if "json" in reports:
        from dacconv.exporters import json_report

        _write(reports["json"], json_report.render_verification(verification))
    if "html" in reports:
        from dacconv.exporters import html

        title = f"{original.name} and {converted.name}"
        _write(reports["html"], html.render_verification(verification, title, missed))
    if STDOUT not in reports.values():
        console.print_lines(formatting.verification(verification))
    console.print_missed(missed)
    if missed:
        raise click.exceptions.Exit(1)


def main() -> NoReturn:
    """The entry point: every DacconvError becomes one message and its exit code."""
    try:
        app(prog_name="dacconv")
    except DacconvError as error:
        _fail(f"dacconv: {error}", error.exit_code)
    except MemoryError:
        _fail("dacconv: out of memory", 3)
    except Exception as error:
        if os.environ.get("DACCONV_DEBUG"):
            raise
        _fail(
            f"dacconv: this is a bug in dacconv, not in your input: {type(error).__name__}: {error}"
            "\n  please report it; DACCONV_DEBUG=1 shows where it happened. Nothing was written.",
            3,
        )
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)


def _settings(given: dict[str, Any], config: Path | None = None) -> Settings:
    """The settings among a command's options; a flag that is off leaves the file's word."""
    from dacconv.config import from_options

    return from_options(config, given)


def _reports(given: dict[str, Any]) -> dict[str, Path]:
    """Where the reports go, by their kind, among a command's options."""
    named = {name: given.get(name) for name in options.REPORTS}
    reports = {name: path for name, path in named.items() if path is not None}
    if sum(path == STDOUT for path in reports.values()) > 1:
        kinds = " and ".join(f"--{name} -" for name, path in reports.items() if path == STDOUT)
        raise UsageError(f"{kinds} exclude each other")
    return reports


def _finish(outcome: Outcome, reports: Mapping[str, Path]) -> None:
    """Show what a job did; exit with 1 where a gate was missed."""
    from dacconv import console

    _show(outcome.report, reports)
    for path in outcome.written:
        click.echo(f"wrote {path}", err=STDOUT in reports.values())
    console.print_missed(outcome.report.missed)
    if outcome.report.missed:
        if not outcome.written:
            click.echo("nothing was written; --keep writes it all the same", err=True)
        raise click.exceptions.Exit(1)


def _show(report: Report, reports: Mapping[str, Path]) -> None:
    """Print the report, and write it where the user wants it."""
    from dacconv import console

    for name, target in reports.items():
        from dacconv.exporters import EXPORTERS

        _write(target, EXPORTERS[name](report))
    if STDOUT not in reports.values():
        console.print_report(report)


def _write(target: Path, text: str) -> None:
    from dacconv.files import write_text

    if target == STDOUT:
        click.echo(text, nl=False)
    else:
        write_text(target, text)


if __name__ == "__main__":
    main()
