"""The command line: parses, calls the jobs, prints, maps errors to exit codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dacconv import __version__
from dacconv.cli import diff, end_of_imports
from dacconv.cli.commands import command
from dacconv.cli.ending import run_to_the_end
from dacconv.cli.reporting import (
    check_folders,
    check_reports,
    plot_outputs,
    write_reports,
    write_text_to,
)
from dacconv.errors import UsageError
from dacconv.safe_text import safe_line
from dacconv.settings import (
    BenchOptions,
    Outputs,
    PackOptions,
    RoundOptions,
    Settings,
    SweepOptions,
)
from dacconv.support.outputs import STDOUT

if TYPE_CHECKING:
    from dacconv.conversion.report import Report
    from dacconv.jobs.batch import Result
    from dacconv.jobs.write import Outcome
    from dacconv.packing.result import PackResult

EXIT_CODES = (
    "Exit codes: 0 done; 1 done, but a gate was missed or the network is broken (nothing is "
    "written unless --keep); "
    "2 wrong usage; 3 input not readable or not supported; 130 interrupted."
)

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)
File = Annotated[Path, typer.Argument()]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dacconv {__version__}")
        raise typer.Exit


@app.callback()
def dacconv(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Make trained convolutional networks smaller and faster, without data.

    MODEL is an ONNX file, a torch.export program (.pt2), a state dict (.pt, .pth, .th,
    .safetensors) or a pickled module.
    """


@command(app, "inspect")
def inspect(model: File, settings: Settings, outputs: Outputs) -> None:
    """List every layer in order of execution: sizes, costs, and why one cannot be split.

    With --tune: how much time each rank would really save, layer by layer.
    """
    from dacconv.cli import console
    from dacconv.jobs import convert as jobs

    others = check_reports(outputs.reports, [model], force=outputs.force)
    with console.Bars() as bars:
        report = jobs.inspect_file(
            model, settings, others=others, force=outputs.force, progress=bars
        )
    _show(report, outputs)


@command(app, "convert", EXIT_CODES)
def convert(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...")],
    settings: Settings,
    outputs: Outputs,
) -> None:
    """Split the chosen conv layers and write the lighter model with its report.

    Without a rank or a budget the largest saving that is usable is searched for.

    The result is written to MODEL.dac.SUFFIX unless -o names another file or -O another folder.
    With several models, one that fails stops no other, and --json, --markdown, --html and
    --plots name folders of the reports.
    """
    from dacconv.cli import console
    from dacconv.jobs import batch
    from dacconv.jobs import convert as jobs

    several, reports = len(models) > 1, outputs.reports
    if outputs.output is not None and (outputs.output_dir is not None or several):
        raise UsageError("-o names the file of one model; -O names the folder of several")
    folder, dry_run = outputs.output_dir, outputs.dry_run
    if several:
        if STDOUT in reports.values():
            raise UsageError("of several models a report needs a folder, not -")
        check_folders(reports)
        tasks = batch.tasks_for(models, settings, folder, reports=reports, dry_run=dry_run)
        handling = batch.Handling(outputs.jobs, outputs.force, outputs.keep, dry_run)
        _finish_all(batch.run_all(tasks, handling, _print_progress))
        return
    others = check_reports(reports, models, force=outputs.force)
    model, target = models[0], outputs.output
    if folder is not None:
        (task,) = batch.tasks_for(models, settings, folder, reports={}, dry_run=dry_run)
        batch.make_folders([task])
        target = task.output
    with console.Bars() as bars:
        if dry_run:
            outcome = jobs.dry_run(
                model,
                settings,
                output=target,
                force=outputs.force,
                others=others,
                progress=bars,
            )
        else:
            outcome = jobs.convert_file(
                model,
                settings,
                output=target,
                force=outputs.force,
                keep=outputs.keep,
                others=others,
                progress=bars,
            )
    _finish(outcome, outputs)


@command(app, "fuse", EXIT_CODES)
def fuse(model: File, settings: Settings, outputs: Outputs) -> None:
    """Merge BatchNorm, parallel branches and chains into single convs, without loss.

    The result is written to MODEL.fused.SUFFIX unless -o names another file.
    """
    from dacconv.cli import console
    from dacconv.jobs import convert as jobs

    others = check_reports(outputs.reports, [model], force=outputs.force)
    with console.Bars() as bars:
        outcome = jobs.fuse_file(
            model,
            settings,
            output=outputs.output,
            force=outputs.force,
            keep=outputs.keep,
            others=others,
            progress=bars,
        )
    _finish(outcome, outputs)


@command(app, "check", EXIT_CODES)
def check(original: File, converted: File, settings: Settings, outputs: Outputs) -> None:
    """Run two models on the same inputs: do they agree, and which is faster.

    With --reproduce, convert the original again instead, as the converted model says that it
    was, and compare the two.
    """
    from dacconv.cli import console
    from dacconv.jobs import convert as jobs
    from dacconv.reports import words
    from dacconv.reports.opening import verification_opening

    if outputs.reproduce:
        _reproduce(original, converted, settings, outputs)
        return
    if settings.calibrate is not None:
        raise UsageError("goes with --reproduce", where="--calibrate")
    reports = outputs.reports
    others = check_reports(reports, [original, converted], force=outputs.force)
    with console.Bars() as bars:
        verification, missed = jobs.compare_files(
            original, converted, settings, others=others, force=outputs.force, progress=bars
        )
    if "json" in reports:
        from dacconv.reports import json_report

        write_text_to(reports["json"], json_report.render_verification(verification))
    if "html" in reports:
        from dacconv.reports import html

        title = f"{original.name} and {converted.name}"
        write_text_to(reports["html"], html.render_verification(verification, title, missed))
    if STDOUT not in reports.values():
        lines = verification_opening(verification).lines
        console.print_lines([*lines, "", *words.verification(verification)])
    console.print_missed(missed)
    if missed:
        raise typer.Exit(1)


@command(app, "run", EXIT_CODES)
def run(outputs: Outputs, file: Annotated[Path, typer.Argument()] = Path("dacconv.toml")) -> None:
    """Do all jobs of a release that FILE lists (dacconv.toml), and write their SHA256SUMS.

    Paths in FILE are relative to its folder. The checksums are written when every job is done
    and no gate was missed.
    """
    from contextlib import chdir

    from dacconv.jobs import batch, release

    dry_run, force = outputs.dry_run, outputs.force
    jobs = release.read_release(file, dry_run=dry_run)
    folder = file.absolute().parent
    if folder != Path.cwd():
        typer.echo(safe_line(f"in {file.parent}:"), err=True)
    with chdir(folder):
        if not dry_run:
            release.check_sums(jobs, force=force)
        handling = batch.Handling(outputs.jobs, force=force, dry_run=dry_run)
        results = batch.run_all(jobs.tasks, handling, _print_progress)
        if not dry_run and batch.exit_code(results) == 0:
            write_text_to(jobs.sums, release.checksums(results, jobs.folder))
    _finish_all(results)


@command(app, "bench", EXIT_CODES)
def bench(
    original: File,
    converted: Annotated[list[Path], typer.Argument(metavar="CONVERTED...")],
    options: BenchOptions,
    settings: Settings,
    outputs: Outputs,
) -> None:
    """Measure time, memory and size of models side by side, each in its own process.

    The first model is what the others are compared with; formats may differ.
    """
    from dacconv.cli import console
    from dacconv.cli.reporting import bench_exporter
    from dacconv.jobs.bench import bench_files

    reports = outputs.reports
    models = (original, *converted)
    others = (*check_reports(reports, models, force=outputs.force), *plot_outputs(outputs.plot))
    with console.Bars() as bars:
        result = bench_files(
            models,
            options,
            settings.load_options,
            outputs=others,
            force=outputs.force,
            progress=bars,
        )
    for name, target in reports.items():
        write_text_to(target, bench_exporter(name)(result))
    if outputs.plot is not None:
        from dacconv.reports.plots.bench import draw
        from dacconv.reports.plots.style import save_as

        save_as(draw(result), outputs.plot)
    if STDOUT not in reports.values():
        console.print_benchmark(result)


@command(app, "sweep")
def sweep(model: File, options: SweepOptions, settings: Settings, outputs: Outputs) -> None:
    """Split a model in many ways, and measure every way against the original.

    Points that are in the results file already are not computed again.
    """
    from dacconv.cli import console
    from dacconv.jobs import sweep as sweep_job

    output, html, plots = outputs.output, outputs.html, outputs.plots
    others = check_reports(outputs.reports, [model], force=outputs.force)
    with console.Bars() as bars:
        result = sweep_job.sweep_file(
            model,
            settings,
            options,
            output=output,
            others=others,
            force=outputs.force,
            progress=bars,
        )
    if html is not None:
        from dacconv.reports import sweep_page

        write_text_to(html, sweep_page.render(result.sweep, str(output or "results.csv")))
    if html != STDOUT:
        console.print_sweep(result, output)
    if plots is not None:
        from dacconv.reports.plots import save_all, sweep_figures

        for path in save_all(sweep_figures(result.sweep), plots):
            typer.echo(safe_line(f"drew {path}"))


diff.register(app)


@command(app, "pack", EXIT_CODES)
def pack(model: File, options: PackOptions, settings: Settings, outputs: Outputs) -> None:
    """Write a model as a small file, which unpack turns into an ordinary one again.

    Weights are rounded to few levels, the errors pushed to where they do least harm to the
    outputs, and entropy-coded; --lossless rounds nothing. The result is written to MODEL with the
    suffix .dcz unless -o names another file.
    """
    from dacconv.cli import console
    from dacconv.jobs import pack as jobs
    from dacconv.jobs.write import Target

    path = outputs.output or model.with_suffix(".dcz")
    with console.Bars() as bars:
        target = Target(path, outputs.force, outputs.keep)
        result = jobs.pack_file(model, options, settings, target, bars)
    _finish_small(result)


@command(app, "round", EXIT_CODES)
def round_values(model: File, options: RoundOptions, settings: Settings, outputs: Outputs) -> None:
    """Round the weights to few values, in an ordinary file that gzip makes much smaller.

    The graph and everything else in the file stay as they are. The result is written to
    MODEL.rounded.SUFFIX unless -o names another file.
    """
    from dacconv.cli import console
    from dacconv.jobs import pack as jobs
    from dacconv.jobs.write import Target

    path = outputs.output or model.with_name(f"{model.stem}.rounded{model.suffix}")
    with console.Bars() as bars:
        target = Target(path, outputs.force, outputs.keep)
        result = jobs.round_file(model, options, settings, target, bars)
    _finish_small(result)


@command(app, "unpack", EXIT_CODES)
def unpack(packed: File, outputs: Outputs) -> None:
    """Write the model in a packed file as the ordinary file that it was.

    It is written under its own name beside PACKED unless -o names another file; external data
    of an ONNX model goes into the same folder, under the names that the model gives.
    """
    from dacconv.jobs import pack as jobs

    for path in jobs.unpack_file(packed, outputs.output, force=outputs.force):
        typer.echo(safe_line(f"wrote {path}"))


def main() -> NoReturn:
    """The entry point: every DacconvError becomes one message and its exit code."""
    run_to_the_end(lambda: app(prog_name="dacconv", standalone_mode=False))


def _reproduce(original: Path, converted: Path, settings: Settings, outputs: Outputs) -> None:
    """Say whether a converted model is what its original gives; exit with 1 where it is not."""
    from dacconv.cli import console
    from dacconv.jobs import reproduce

    reproduce.require_alone(settings, outputs)
    with console.Bars() as bars:
        result = reproduce.reproduce(original, converted, reproduce.opening(settings), bars)
    typer.echo(safe_line(f"{converted}: {result.summary()}"))
    if result.problem:
        raise typer.Exit(1)


def _finish(outcome: Outcome, outputs: Outputs) -> None:
    """Show what a job did; exit with 1 where a gate was missed."""
    from dacconv.cli import console

    _show(outcome.report, outputs)
    for path in outcome.written:
        typer.echo(safe_line(f"wrote {path}"), err=STDOUT in outputs.reports.values())
    console.print_missed(outcome.report.missed)
    if outcome.report.missed:
        if not outcome.written:
            hint = "" if outcome.faulty else "; --keep writes it all the same"
            typer.echo(f"nothing was written{hint}", err=True)
        raise typer.Exit(1)


def _finish_small(result: PackResult) -> None:
    """Show what was packed or rounded; exit with 1 where a gate was missed."""
    from dacconv.cli import console
    from dacconv.reports import pack_words

    console.print_lines(pack_words.lines(result))
    console.print_missed(result.missed)
    if result.missed:
        if not result.written:
            typer.echo("nothing was written; --keep writes it all the same", err=True)
        raise typer.Exit(1)


def _print_progress(result: Result, count: int, total: int) -> None:
    """Write the reports of one of many models, and say that it is done."""
    if result.outcome is not None:
        write_reports(result.outcome.report, result.task.reports)
    typer.echo(safe_line(f"[{count}/{total}] {result.task.name}: {result.status}"), err=True)


def _finish_all(results: Sequence[Result]) -> None:
    """Show the results of many models; exit with the gravest code."""
    from dacconv.cli import console
    from dacconv.jobs import batch

    console.print_results(results)
    if code := batch.exit_code(results):
        raise typer.Exit(code)


def _show(report: Report, outputs: Outputs) -> None:
    """Print the report, and write it where the user wants it."""
    from dacconv.cli import console

    write_reports(report, outputs.reports)
    if STDOUT not in outputs.reports.values():
        console.print_report(report, verbose=outputs.verbose)


def __getattr__(name: str) -> Any:
    """``click_app``: the command as an object, for tools that inspect it."""
    if name == "click_app":
        return typer.main.get_command(app)
    raise AttributeError(name)


end_of_imports()

if __name__ == "__main__":
    main()
