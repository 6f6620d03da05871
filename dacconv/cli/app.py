"""The command line: parses, calls the jobs, prints, maps errors to exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dacconv import __version__
from dacconv.cli import options
from dacconv.errors import UsageError, describe
from dacconv.support.files import require_folder

if TYPE_CHECKING:
    from dacconv.conversion.report import Report
    from dacconv.jobs.batch import Result
    from dacconv.jobs.convert import Outcome
    from dacconv.settings import Settings
    from dacconv.timing.benchmark.result import Benchmark

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
@options.TUNE
@options.THREADS
@options.JSON
@options.MARKDOWN
@options.HTML
@options.PLOTS
def inspect(model: Path, **given: Any) -> None:
    """List every layer in order of execution: sizes, costs, and why one cannot be split.

    With --tune: how much time each rank would really save, layer by layer.
    """
    from dacconv.cli import console
    from dacconv.jobs import convert as jobs

    reports = _reports(given)
    with console.Bars() as bars:
        report = jobs.inspect_file(model, _settings(given), bars)
    _show(report, reports)


@app.command(cls=options.Command, epilog=EXIT_CODES)
@click.argument("models", type=options.FILE, nargs=-1, required=True, metavar="MODEL...")
@options.CHOICE
@options.FORM
@options.TUNE
@options.CALIBRATE
@options.SOURCE
@options.VERIFY
@options.RUN
@options.SAVING
@options.AGREEMENT
@options.TARGET
@options.FOLDER
@options.AT_ONCE
@options.DRY_RUN
@options.JSON
@options.MARKDOWN
@options.HTML
@options.PLOTS
def convert(
    models: tuple[Path, ...],
    config: Path | None,
    output: Path | None,
    output_dir: Path | None,
    at_once: int,
    force: bool,
    keep: bool,
    dry_run: bool,
    **given: Any,
) -> None:
    """Split the chosen conv layers and write the lighter model with its report.

    The result is written to MODEL.dac.SUFFIX unless -o names another file or -O another folder.
    With several models, one that fails stops no other, and --json, --markdown, --html and
    --plots name folders of the reports.
    """
    from dacconv.cli import console
    from dacconv.jobs import batch
    from dacconv.jobs import convert as jobs

    reports = _reports(given, folders=len(models) > 1)
    settings = _settings(given, config)
    if output is not None and (output_dir is not None or len(models) > 1):
        raise UsageError("-o names the file of one model; -O names the folder of several")
    if len(models) > 1:
        if STDOUT in reports.values():
            raise UsageError("of several models a report needs a folder, not -")
        tasks = batch.tasks_for(models, settings, output_dir, reports=reports, dry_run=dry_run)
        manner = batch.Manner(at_once, force, keep, dry_run)
        _finish_all(batch.run_all(tasks, manner, _told))
        return
    model, target = models[0], output
    if output_dir is not None:
        (task,) = batch.tasks_for(models, settings, output_dir, reports={}, dry_run=dry_run)
        batch.make_folders([task])
        target = task.output
    with console.Bars() as bars:
        if dry_run:
            outcome = jobs.dry_run(model, settings, output=target, force=force, progress=bars)
        else:
            outcome = jobs.convert_file(
                model, settings, output=target, force=force, keep=keep, progress=bars
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
@options.PLOTS
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
    from dacconv.cli import console
    from dacconv.jobs import convert as jobs

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
@options.REPRODUCE
@options.JSON
@options.HTML
def check(original: Path, converted: Path, reproduce: bool, **given: Any) -> None:
    """Run two models on the same seeded inputs: do they agree, and which is faster.

    With --reproduce, convert the original again instead, as the converted model says that it
    was, and see whether the same comes out.
    """
    from dacconv.cli import console
    from dacconv.jobs import convert as jobs
    from dacconv.reports import words as formatting

    if reproduce:
        _reproduce(original, converted, given)
        return

    reports, settings = _reports(given), _settings(given)
    with console.Bars() as bars:
        verification, missed = jobs.compare_files(original, converted, settings, bars)
    if "json" in reports:
        from dacconv.reports import json_report

        _write(reports["json"], json_report.render_verification(verification))
    if "html" in reports:
        from dacconv.reports import html

        title = f"{original.name} and {converted.name}"
        _write(reports["html"], html.render_verification(verification, title, missed))
    if STDOUT not in reports.values():
        console.print_lines(formatting.verification(verification))
    console.print_missed(missed)
    if missed:
        raise click.exceptions.Exit(1)


@app.command("run", cls=options.Command, epilog=EXIT_CODES)
@click.argument("file", type=options.FILE, default=Path("dacconv.toml"))
@options.AT_ONCE
@options.FORCE
@options.DRY_RUN
def run_release(file: Path, at_once: int, force: bool, dry_run: bool) -> None:
    """Do all jobs of a release that FILE lists (dacconv.toml), and write their SHA256SUMS.

    Paths in FILE are relative to its folder. The checksums are written when every job is done
    and no gate was missed.
    """
    from contextlib import chdir

    from dacconv.jobs import batch, release

    jobs = release.read_release(file, dry_run=dry_run)
    folder = file.absolute().parent
    if folder != Path.cwd():
        click.echo(f"in {file.parent}:", err=True)
    with chdir(folder):
        if not dry_run:
            release.check_sums(jobs, force=force)
        manner = batch.Manner(at_once, force=force, dry_run=dry_run)
        results = batch.run_all(jobs.tasks, manner, _told)
        if not dry_run and batch.exit_code(results) == 0:
            _write(jobs.sums, release.checksums(results, jobs.folder))
    _finish_all(results)


def _reproduce(original: Path, converted: Path, given: dict[str, Any]) -> None:
    """Tell whether a converted model is what its original gives; exit with 1 where it is not."""
    from dacconv.cli import console
    from dacconv.jobs import reproduce as reproduction

    reproduction.require_alone(given)
    with console.Bars() as bars:
        done = reproduction.reproduce(original, converted, reproduction.opening(given), bars)
    click.echo(f"{converted}: {done.told()}")
    if done.problem:
        raise click.exceptions.Exit(1)


@app.command(cls=options.Command, epilog=EXIT_CODES)
@click.argument("original", type=options.FILE)
@click.argument("converted", type=options.FILE, nargs=-1, required=True)
@options.BENCH
@options.SOURCE
@options.JSON
@options.MARKDOWN
@options.HTML
@options.PLOT
def bench(
    original: Path,
    converted: tuple[Path, ...],
    layers: bool,
    plot: Path | None,
    **given: Any,
) -> None:
    """Measure time, memory and size of models side by side, each in its own process.

    The first model is what the others are compared with; formats may differ.
    """
    from dacconv.cli import console
    from dacconv.jobs import convert as jobs
    from dacconv.settings import parse_counts
    from dacconv.timing.benchmark.run import bench as measure

    reports = _reports(given)
    names = ("batch", "threads", "rounds", "seconds", "device", "dtype", "channels_last", "seed")
    how = {name: given.pop(name) for name in names}
    how["batches"] = parse_counts(how.pop("batch"), "--batch")
    how["threads"] = parse_counts(how["threads"], "--threads")
    how = {name: value for name, value in how.items() if value is not None}
    if plot is not None:
        if plot.suffix not in (".png", ".svg"):
            raise UsageError("is neither .png nor .svg", where=f"--plot {plot}")
        require_folder(plot, f"--plot {plot}")
    source = jobs.load_options(_settings(given))
    with console.Bars() as bars:
        result = measure(original, *converted, layers=layers, options=source, progress=bars, **how)
    for name, target in reports.items():
        _write(target, _bench_exporter(name)(result))
    if plot is not None:
        from dacconv.reports.plots.bench import draw
        from dacconv.reports.plots.style import save_as

        save_as(draw(result), plot)
    if STDOUT not in reports.values():
        console.print_benchmark(result)


@app.command(cls=options.Command)
@model_argument
@options.SWEEP
@options.LAYERS
@options.MEASURES
@options.CALIBRATE
@options.SOURCE
@options.WORKERS
@options.RESULTS
@options.HTML
@options.PLOTS
def sweep(
    model: Path,
    config: Path | None,
    mode: tuple[str, ...],
    ranks: str | None,
    budgets: str | None,
    task: str | None,
    data: Path | None,
    bench: bool,
    jobs: int | None,
    dask: str | None,
    output: Path | None,
    plots: Path | None,
    html: Path | None,
    force: bool,
    **given: Any,
) -> None:
    """Split a model in many ways, and measure every way against the original.

    Points that are in the results file already are not computed again.
    """
    from dacconv.cli import console
    from dacconv.jobs import sweep as sweep_job

    _reports({"html": html, "plots": plots})
    settings = _settings(given | {"samples": given["samples"] or sweep_job.SAMPLES}, config)
    wanted = sweep_job.wanted(
        mode, ranks, budgets, jobs=jobs, dask=dask, bench=bench, task=task, data=data
    )
    with console.Bars() as bars:
        done = sweep_job.sweep_file(
            model, settings, wanted, output=output, force=force, progress=bars
        )
    if html is not None:
        from dacconv.reports import sweep_page

        _write(html, sweep_page.render(done.sweep, str(output or "results.csv")))
    if html != STDOUT:
        console.print_sweep(done, output)
    if plots is not None:
        from dacconv.reports.plots import save_all, sweep_figures

        for path in save_all(sweep_figures(done.sweep), plots):
            click.echo(f"drew {path}")


def _bench_exporter(name: str) -> Callable[[Benchmark], str]:
    """What makes a report of that kind of a benchmark."""
    from dacconv.reports import benchmark_words as benchmark_text

    if name == "html":
        from dacconv.reports import bench_page

        return bench_page.render
    return benchmark_text.EXPORTERS[name]


def main() -> NoReturn:
    """The entry point: every DacconvError becomes one message and its exit code."""
    try:
        app(prog_name="dacconv")
    except Exception as error:
        message, code = describe(error)
        click.echo(f"dacconv: {message}", err=True)
        sys.exit(code)
    sys.exit(0)


def _settings(given: dict[str, Any], config: Path | None = None) -> Settings:
    """The settings among a command's options; a flag that is off leaves the file's word."""
    from dacconv.settings import from_options

    return from_options(config, given)


def _reports(given: dict[str, Any], *, folders: bool = False) -> dict[str, Path]:
    """Where the reports go, by their kind, among a command's options.

    With ``folders`` they name folders, which are made.

    Raises:
        UsageError: before the work, where they cannot go there.
    """
    named = {name: given.get(name) for name in options.REPORTS}
    reports = {name: path for name, path in named.items() if path is not None}
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
    return reports


def _finish(outcome: Outcome, reports: Mapping[str, Path]) -> None:
    """Show what a job did; exit with 1 where a gate was missed."""
    from dacconv.cli import console

    _show(outcome.report, reports)
    for path in outcome.written:
        click.echo(f"wrote {path}", err=STDOUT in reports.values())
    console.print_missed(outcome.report.missed)
    if outcome.report.missed:
        if not outcome.written:
            click.echo("nothing was written; --keep writes it all the same", err=True)
        raise click.exceptions.Exit(1)


def _told(result: Result, done: int, total: int) -> None:
    """Write the reports of one of many models, and tell that it is through."""
    if result.outcome is not None:
        _write_reports(result.outcome.report, result.task.reports)
    click.echo(f"[{done}/{total}] {result.task.name}: {result.status}", err=True)


def _finish_all(results: Sequence[Result]) -> None:
    """Show what came of many models; exit with the gravest code."""
    from dacconv.cli import console
    from dacconv.jobs import batch

    console.print_results(results)
    if code := batch.exit_code(results):
        raise click.exceptions.Exit(code)


def _show(report: Report, reports: Mapping[str, Path]) -> None:
    """Print the report, and write it where the user wants it."""
    from dacconv.cli import console

    _write_reports(report, reports)
    if STDOUT not in reports.values():
        console.print_report(report)


def _write_reports(report: Report, reports: Mapping[str, Path]) -> None:
    """Write the report in every kind that is asked for."""
    for name, target in reports.items():
        if name == "plots":
            from dacconv.reports.plots import report_figures, save_all

            save_all(report_figures(report), target)
        else:
            from dacconv.reports import EXPORTERS

            _write(target, EXPORTERS[name](report))


def _write(target: Path, text: str) -> None:
    from dacconv.support.files import write_text

    if target == STDOUT:
        click.echo(text, nl=False)
    else:
        write_text(target, text)


if __name__ == "__main__":
    main()
