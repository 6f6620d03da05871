"""The command line: parses, calls the jobs, prints, maps errors to exit codes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dacconv import __version__
from dacconv.errors import DacconvError, UsageError

if TYPE_CHECKING:
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


def _whole(text: str) -> int:
    """A number as the user typed it; whether it may be that small is told by who uses it."""
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"'{text}' is not a whole number above 0") from error


SOURCE, CHOICE, GATES, OUT = "Opening the model", "Choosing", "Verification and gates", "Output"

ModelPath = Annotated[
    Path,
    typer.Argument(help="ONNX, .pt2, .pt/.pth/.th, .safetensors.", show_default=False),
]
InputShape = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SHAPE",
        help="Sizes that the model does not fix, as 1,3,224,224 or NAME:1,3,224,224; repeatable.",
        rich_help_panel=SOURCE,
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        metavar="FACTORY",
        help="What builds the network of a state dict: PACKAGE.MODULE:FACTORY or FILE.py:FACTORY.",
        rich_help_panel=SOURCE,
    ),
]
ArchArg = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE", help="NAME=VALUE for the factory; repeatable.", rich_help_panel=SOURCE
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        metavar="KEY", help="The checkpoint's entry with the state dict.", rich_help_panel=SOURCE
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        help="Let a pickle run the code that it names. Only for files you trust.",
        rich_help_panel=SOURCE,
    ),
]
JsonOut = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", help="Write the report as JSON; - is stdout.", rich_help_panel=OUT
    ),
]
MarkdownOut = Annotated[
    Path | None,
    typer.Option(
        "--markdown",
        metavar="FILE",
        help="Write the report as Markdown; - is stdout.",
        rich_help_panel=OUT,
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Seeded inputs to run (default: 8).", rich_help_panel=GATES
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", help="Their seed (default: 0).", rich_help_panel=GATES),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Threads of the runtime (default: its own choice).",
        rich_help_panel=GATES,
    ),
]
MaxError = Annotated[
    float | None,
    typer.Option(
        metavar="ERROR", help="Fail above this relative output error.", rich_help_panel=GATES
    ),
]
Verify = Annotated[
    bool | None,
    typer.Option(
        "--verify/--no-verify",
        help="Run original and converted side by side (default: yes).",
        rich_help_panel=GATES,
    ),
]
Keep = Annotated[
    bool,
    typer.Option("--keep", help="Write even when a gate is missed.", rich_help_panel=GATES),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite.", rich_help_panel=OUT)]
MinAgreement = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        help="Fail when fewer inputs keep their top class, as 99%.",
        rich_help_panel=GATES,
    ),
]


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
    from dacconv.config import settings
    from dacconv.jobs import open_with

    source = _given(
        input_shape=input_shape, arch=arch, arch_arg=arch_arg, key=key, trust_pickle=trust_pickle
    )
    _show(pipeline.inspect(open_with(model, settings(None, source))), json, markdown)


@app.command()
def convert(
    model: ModelPath,
    rank: Annotated[
        int | None,
        typer.Option(
            help="The same rank for every layer.",
            parser=_whole,
            metavar="R",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    ranks: Annotated[
        str | None,
        typer.Option(
            metavar="RANKS", help="NAME=R,NAME=R; names may be globs.", rich_help_panel=CHOICE
        ),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Smallest rank that keeps this share, as 0.95.",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    energy_over: Annotated[
        str | None,
        typer.Option(
            metavar="mean|max",
            help="Over the mean of the channels, or over the max of all (default: mean).",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A plan in JSON, as --dry-run writes it.", rich_help_panel=CHOICE
        ),
    ] = None,
    first_k: Annotated[
        int | None,
        typer.Option(
            help="Only the first K layers.", parser=_whole, metavar="K", rich_help_panel=CHOICE
        ),
    ] = None,
    last_k: Annotated[
        int | None,
        typer.Option(
            help="Only the last K layers.", parser=_whole, metavar="K", rich_help_panel=CHOICE
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Only layers that match this glob; repeatable.",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="No layer that matches this glob; repeatable.",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    allow_costlier: Annotated[
        bool,
        typer.Option(
            "--allow-costlier",
            help="Split even where the rank makes a layer cost more.",
            rich_help_panel=CHOICE,
        ),
    ] = False,
    fuse: Annotated[
        bool | None,
        typer.Option(
            "--fuse/--no-fuse",
            help="Merge BatchNorm and branches without loss first (default: yes).",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    kernel_scale: Annotated[
        str | None,
        typer.Option(
            metavar="own|folded",
            help="Split kernels in their own scale or folded by BatchNorm (default: own).",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Settings in TOML; options given here win.", rich_help_panel=CHOICE
        ),
    ] = None,
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
    min_saving: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE", help="Fail when fewer MACs are saved, as 40%.", rich_help_panel=GATES
        ),
    ] = None,
    min_agreement: MinAgreement = None,
    keep: Keep = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="The file to write (default: MODEL.dac.SUFFIX).",
            rich_help_panel=OUT,
        ),
    ] = None,
    force: Force = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print and write the plan only (-o names it).", rich_help_panel=OUT
        ),
    ] = False,
    json: JsonOut = None,
    markdown: MarkdownOut = None,
) -> None:
    """Split the chosen conv layers and write the lighter model with its report."""
    from dacconv import console, jobs
    from dacconv.config import parse_ranks
    from dacconv.config import settings as merged

    settings = merged(
        config,
        _given(
            rank=rank,
            ranks=parse_ranks(ranks) if ranks is not None else None,
            energy=energy,
            energy_over=energy_over,
            plan=str(plan) if plan else None,
            first_k=first_k,
            last_k=last_k,
            layers=layers,
            skip=skip,
            allow_costlier=allow_costlier,
            fuse=fuse,
            kernel_scale=kernel_scale,
            input_shape=input_shape,
            arch=arch,
            arch_arg=arch_arg,
            key=key,
            trust_pickle=trust_pickle,
            verify=verify,
            samples=samples,
            seed=seed,
            threads=threads,
            max_error=max_error,
            min_saving=min_saving,
            min_agreement=min_agreement,
        ),
    )
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
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="The file to write (default: MODEL.fused.SUFFIX).",
            rich_help_panel=OUT,
        ),
    ] = None,
    force: Force = False,
    json: JsonOut = None,
    markdown: MarkdownOut = None,
) -> None:
    """Merge BatchNorm, parallel branches and chains into single convs, without loss."""
    from dacconv import console, jobs
    from dacconv.config import settings as merged

    settings = merged(
        None,
        _given(
            input_shape=input_shape,
            arch=arch,
            arch_arg=arch_arg,
            key=key,
            trust_pickle=trust_pickle,
            verify=verify,
            samples=samples,
            seed=seed,
            threads=threads,
            max_error=max_error,
        ),
    )
    with console.Bars() as bars:
        outcome = jobs.fuse_file(
            model, settings, output=output, force=force, keep=keep, progress=bars
        )
    _finish(outcome, json, markdown)


@app.command()
def check(
    original: Annotated[Path, typer.Argument(show_default=False)],
    converted: Annotated[Path, typer.Argument(show_default=False)],
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
    from dacconv.config import settings as merged
    from dacconv.exporters import json_report

    settings = merged(
        None,
        _given(
            input_shape=input_shape,
            arch=arch,
            arch_arg=arch_arg,
            key=key,
            trust_pickle=trust_pickle,
            samples=samples,
            seed=seed,
            threads=threads,
            max_error=max_error,
            min_agreement=min_agreement,
        ),
    )
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


def _given(**options: Any) -> dict[str, Any]:
    """The options that the user gave, lists as tuples; flags that are off are not given."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.items()
        if value is not None and (value is not False or name in ("verify", "fuse"))
    }


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
