"""The job of the command ``sweep``: a model's file in, a results file out, which can be resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dacconv.calibration.inputs.user_data import read_data
from dacconv.errors import UsageError
from dacconv.jobs.convert import input_files
from dacconv.jobs.write import open_with
from dacconv.settings import Settings, SweepOptions
from dacconv.support.files import Digest
from dacconv.support.outputs import Output, check_outputs
from dacconv.support.parsing import parse_shares
from dacconv.support.progress import Progress, silent
from dacconv.sweeps.files import Journal, check_suffix, read_sweep, set_aside
from dacconv.sweeps.measure import SAMPLES, Setup
from dacconv.sweeps.points import BUDGET, SINGLE, Grid, parse_ranks
from dacconv.sweeps.pool import Workers
from dacconv.sweeps.results import PointResult, Sweep
from dacconv.sweeps.run import LayerOptions, Prepared, counted, prepare

RANKS = "1-5"


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """The results, and notes for the user about the results file."""

    sweep: Sweep
    notes: tuple[str, ...]


def grid_of(options: SweepOptions, method: str | None) -> Grid:
    """The grid of the options; several modes may be written as ``single,last-k``.

    Raises:
        UsageError: invalid values, or budgets for another mode.
    """
    names = tuple(name.strip() for text in options.mode for name in text.split(","))
    budgets = parse_shares(options.budgets, "--budgets") if options.budgets else ()
    if budgets and BUDGET not in names:
        raise UsageError("budgets are for --mode budget", where="--budgets")
    ranks = parse_ranks(options.ranks or RANKS)
    return Grid(tuple(dict.fromkeys(names)) or (SINGLE,), ranks, budgets, method)


def workers_of(options: SweepOptions) -> Workers:
    """The processes that measure; UsageError where both processes and a cluster are named."""
    if options.jobs is not None and options.dask is not None:
        raise UsageError(
            "--jobs starts processes on this machine, --dask uses a cluster", hint="use one of them"
        )
    return Workers(options.jobs, options.dask)


def sweep_file(
    path: Path,
    settings: Settings,
    options: SweepOptions,
    *,
    output: Path | None = None,
    others: Sequence[Output] = (),
    force: bool = False,
    progress: Progress = silent,
) -> SweepOutcome:
    """Measure every point that the file ``output`` does not have yet, and write them to it.

    A file with results of another model or of other options is renamed, unless ``force`` is true:
    then it is overwritten.

    Raises:
        DacconvError: an input, an option or the results file is invalid.
    """
    settings = replace(settings, samples=settings.samples or SAMPLES)
    digest, grid, workers = Digest(path), grid_of(options, settings.method), workers_of(options)
    if output is not None:
        check_suffix(output)
    outputs = [] if output is None else [Output(output, "-o", continued=True)]
    inputs = [path, *input_files(settings), *input_files_of_sweep(options)]
    check_outputs([*outputs, *others], inputs, force=force)
    if output is not None and output.exists() and not force:
        read_sweep(output)  # raises, before the work, where it is another kind of file
    model = open_with(path, settings)
    check_outputs([*outputs, *others], [*model.files, *inputs], force=force)
    prepared = prepare(
        model,
        grid,
        LayerOptions(settings.selection, settings.allow_costlier),
        _setup(settings, options, grid),
        workers=workers,
        recorded=_recorded(settings, options, grid),
        digest=digest,
        progress=progress,
    )
    old_rows, notes = _rows_of(output, prepared, force=force)
    missing = prepared.missing(old_rows)
    journal = None
    if output is not None:
        journal = Journal(output, prepared.blank, list(old_rows))
        journal.begin()
    rows = counted(
        prepared.measure(missing),
        len(missing),
        progress,
        journal.add if journal else lambda row: None,
    )
    sweep = prepared.sweep([*old_rows, *rows])
    if output is not None:
        Journal(output, prepared.blank, list(sweep.points)).begin()
    return SweepOutcome(sweep, notes)


def input_files_of_sweep(options: SweepOptions) -> list[Path]:
    """The files that a sweep reads because of its options."""
    source = Path((options.task or "").rpartition(":")[0])
    files = [source, *([] if options.data is None else [options.data])]
    return [file for file in files if file.is_file()]


def _setup(settings: Settings, options: SweepOptions, grid: Grid) -> Setup:
    return Setup(
        check=settings.check_options,
        split=settings.split_options,
        calibration=replace(
            settings.calibration_options, source=settings.calibrate or grid.calibration
        ),
        threads=settings.threads or (None if options.jobs is None else 1),
        bench=options.bench,
        task=options.task,
        data=read_data(options.data) if options.data else None,
    )


def _recorded(settings: Settings, options: SweepOptions, grid: Grid) -> dict[str, Any]:
    """The options that the results depend on."""
    others = {f.name for f, declaration in Settings.declared() if not declaration.numbers}
    recorded = {k: v for k, v in settings.changed().items() if k not in others}
    recorded |= {name: getattr(settings, name) for name in ("samples", "fuse", "kernel_scale")}
    recorded["calibrate"] = settings.calibrate or grid.calibration
    if options.bench:
        recorded |= {"bench": True, "threads": settings.threads}
    if options.task is not None:
        recorded["eval"] = options.task
        source = Path(options.task.rpartition(":")[0])
        if source.is_file():
            recorded["eval_sha256"] = Digest(source).of(source)
    if options.data is not None:
        data = options.data
        recorded |= {"data": data.name, "data_sha256": Digest(data).of(data)}
    return recorded


def _rows_of(
    output: Path | None, prepared: Prepared, *, force: bool
) -> tuple[tuple[PointResult, ...], tuple[str, ...]]:
    """The rows of an existing results file, and notes for the user about it."""
    if output is None or force or not output.exists():
        return (), ()
    old = read_sweep(output)
    changed = _changes(old.header, prepared.blank.header)
    if changed:
        backup = set_aside(output)
        return (), (f"starting again, because {changed}; the old results are now {backup}",)
    missing = len(prepared.missing(old.points))
    count = len(prepared.points)
    notes = [f"{count - missing} of {count} points are in {output} already"]
    labels = {point.label for point in prepared.points}
    if others := sum(row.label not in labels for row in old.points):
        notes.append(f"{others} points of other modes or ranks stay in it")
    return old.points, ("; ".join(notes),)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The changes that make old results invalid, as text; empty where there are none."""
    if old.get("sha256") != new["sha256"]:
        return "the model has changed"
    if old.get("dacconv") != new["dacconv"]:
        return f"they were made by dacconv {old.get('dacconv')}"
    before, now = old.get("options") or {}, new["options"]
    names = [n for n in sorted({*before, *now}) if before.get(n) != now.get(n)]
    changes = [f"--{n.replace('_', '-')} was {before.get(n)} and is {now.get(n)}" for n in names]
    return ", ".join(changes)
