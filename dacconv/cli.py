"""The command line: parses, calls the jobs, prints, maps errors to exit codes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from dacconv import __version__
from dacconv.errors import DacconvError, UsageError
from dacconv.options import (
    AllowCostlier,
    Arch,
    ArchArg,
    Config,
    ConvertedPath,
    ConvertOut,
    DryRun,
    Energy,
    EnergyOver,
    FirstK,
    Force,
    Fuse,
    FuseOut,
    InputShape,
    JsonOut,
    Keep,
    KernelScale,
    Key,
    LastK,
    Layers,
    MarkdownOut,
    MaxError,
    MinAgreement,
    MinSaving,
    ModelPath,
    OriginalPath,
    PlanFile,
    Rank,
    Ranks,
    Samples,
    Seed,
    Skip,
    Threads,
    TrustPickle,
    Verify,
)

if TYPE_CHECKING:
    from dacconv.config import Settings
    from dacconv.jobs import Outcome
    from dacconv.report import Report

app = typer.Typer(
    name="dacconv",
    help="Make trained convolutional networks smaller and faster, without data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    """Make trained convolutional networks smaller and faster, without data."""
    if version:
        typer.echo(f"dacconv {__version__}")
        raise typer.Exit


@app.command()
def inspect(
    context: typer.Context,
    model: ModelPath,
    input_shape: InputShape = None,
    arch: Arch = None,
    arch_arg: ArchArg = None,
    key: Key = None,
    trust_pickle: TrustPickle = False,
    json: JsonOut = None,
    markdown: MarkdownOut = None,
) -> None:
    """List every layer in order of execution: sizes, costs, and why one cannot be split."""
    from dacconv import pipeline
    from dacconv.jobs import open_with

    _show(pipeline.inspect(open_with(model, _settings(context))), json, markdown)


@app.command()
def convert(
    context: typer.Context,
    model: ModelPath,
    rank: Rank = None,
    ranks: Ranks = None,
    energy: Energy = None,
    energy_over: EnergyOver = None,
    plan: PlanFile = None,
    first_k: FirstK = None,
    last_k: LastK = None,
    layers: Layers = None,
    skip: Skip = None,
    allow_costlier: AllowCostlier = False,
    fuse: Fuse = None,
    kernel_scale: KernelScale = None,
    config: Config = None,
    input_shape: InputShape = None,
    arch: Arch = None,
    arch_arg: ArchArg = None,
    key: Key = None,
    trust_pickle: TrustPickle = False,
    verify: Verify = None,
    samples: Samples = None,
    seed: Seed = None,
    threads: Threads = None,
    max_error: MaxError = None,
    min_saving: MinSaving = None,
    min_agreement: MinAgreement = None,
    keep: Keep = False,
    output: ConvertOut = None,
    force: Force = False,
    dry_run: DryRun = False,
    json: JsonOut = None,
    markdown: MarkdownOut = None,
) -> None:
    """Split the chosen conv layers and write the lighter model with its report."""
    from dacconv import console, jobs

    settings = _settings(context, config)
    with console.Bars() as bars:
        if dry_run:
            outcome = jobs.dry_run(model, settings, output=output, force=force, progress=bars)
        else:
            outcome = jobs.convert_file(
                model, settings, output=output, force=force, keep=keep, progress=bars
            )
    _finish(outcome, json, markdown)


@app.command()
def fuse(
    context: typer.Context,
    model: ModelPath,
    input_shape: InputShape = None,
    arch: Arch = None,
    arch_arg: ArchArg = None,
    key: Key = None,
    trust_pickle: TrustPickle = False,
    verify: Verify = None,
    samples: Samples = None,
    seed: Seed = None,
    threads: Threads = None,
    max_error: MaxError = None,
    keep: Keep = False,
    output: FuseOut = None,
    force: Force = False,
    json: JsonOut = None,
    markdown: MarkdownOut = None,
) -> None:
    """Merge BatchNorm, parallel branches and chains into single convs, without loss."""
    from dacconv import console, jobs

    settings = _settings(context)
    with console.Bars() as bars:
        outcome = jobs.fuse_file(
            model, settings, output=output, force=force, keep=keep, progress=bars
        )
    _finish(outcome, json, markdown)


@app.command()
def check(
    context: typer.Context,
    original: OriginalPath,
    converted: ConvertedPath,
    input_shape: InputShape = None,
    arch: Arch = None,
    arch_arg: ArchArg = None,
    key: Key = None,
    trust_pickle: TrustPickle = False,
    samples: Samples = None,
    seed: Seed = None,
    threads: Threads = None,
    max_error: MaxError = None,
    min_agreement: MinAgreement = None,
    json: JsonOut = None,
) -> None:
    """Run two models on the same seeded inputs: do they agree, and which is faster."""
    from dacconv import console, formatting, jobs
    from dacconv.exporters import json_report

    settings = _settings(context)
    with console.Bars() as bars:
        verification, missed = jobs.compare_files(original, converted, settings, bars)
    if json is not None:
        _write(json, json_report.render_verification(verification))
    if not _on_stdout(json):
        console.print_lines(formatting.verification(verification))
    console.print_missed(missed)
    if missed:
        raise typer.Exit(1)


def main() -> NoReturn:
    """The entry point: every DacconvError becomes one message and its exit code."""
    try:
        app()
    except DacconvError as error:
        typer.echo(f"dacconv: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("dacconv: interrupted; nothing was left behind", err=True)
        sys.exit(130)
    except MemoryError:
        typer.echo("dacconv: out of memory", err=True)
        sys.exit(3)
    except Exception as error:
        if os.environ.get("DACCONV_DEBUG"):
            raise
        typer.echo(
            f"dacconv: this is a bug in dacconv, not in your input: {type(error).__name__}: {error}"
            "\n  please report it; DACCONV_DEBUG=1 shows where it happened. Nothing was written.",
            err=True,
        )
        sys.exit(3)
    sys.exit(0)


def _settings(context: typer.Context, config: Path | None = None) -> Settings:
    """The settings among a command's options; a flag that is off leaves the file's word."""
    from dacconv.config import from_options

    return from_options(config, context.params)


def _finish(outcome: Outcome, json: Path | None, markdown: Path | None) -> None:
    """Show what a job did; exit with 1 where a gate was missed."""
    from dacconv import console

    _show(outcome.report, json, markdown)
    for path in outcome.written:
        typer.echo(f"wrote {path}", err=_on_stdout(json, markdown))
    console.print_missed(outcome.missed)
    if outcome.missed:
        if not outcome.written:
            typer.echo("nothing was written; --keep writes it all the same", err=True)
        raise typer.Exit(1)


def _show(report: Report, json: Path | None, markdown: Path | None) -> None:
    """Print the report, and write it where the user wants it."""
    from dacconv import console
    from dacconv.exporters import EXPORTERS

    if json == Path("-") and markdown == Path("-"):
        raise UsageError("--json - and --markdown - exclude each other")
    for name, target in (("json", json), ("markdown", markdown)):
        if target is not None:
            _write(target, EXPORTERS[name](report))
    if not _on_stdout(json, markdown):
        console.print_report(report)


def _on_stdout(*targets: Path | None) -> bool:
    return Path("-") in targets


def _write(target: Path, text: str) -> None:
    from dacconv.files import write_text

    if target == Path("-"):
        typer.echo(text, nl=False)
    else:
        write_text(target, text)


if __name__ == "__main__":
    main()
