"""A sweep as the command line asks for it: a model's file in, a results file out and resumed."""

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
from dacconv.sweeps.pool import Where
from dacconv.sweeps.results import PointResult, Sweep
from dacconv.sweeps.run import Prepared, Selected, counted, prepare

RANKS = "1-5"


@dataclass(frozen=True, slots=True)
class Swept:
    """The results, and what a person must be told of how they came about."""

    sweep: Sweep
    told: tuple[str, ...]


def grid_of(options: SweepOptions, method: str) -> Grid:
    """The points that a command line asks for; modes may be given as ``single,last-k``.

    Raises:
        UsageError: impossible values, or budgets for another mode.
    """
    names = tuple(name.strip() for text in options.mode for name in text.split(","))
    budgets = parse_shares(options.budgets, "--budgets") if options.budgets else ()
    if budgets and BUDGET not in names:
        raise UsageError("budgets are for --mode budget", where="--budgets")
    ranks = parse_ranks(options.ranks or RANKS)
    return Grid(tuple(dict.fromkeys(names)) or (SINGLE,), ranks, budgets, method)


def workers_of(options: SweepOptions) -> Where:
    """Who measures the points; UsageError where both processes and a cluster are named."""
    if options.jobs is not None and options.dask is not None:
        raise UsageError("--jobs are processes of this machine, --dask asks a cluster: give one")
    return Where(options.jobs, options.dask)


def sweep_file(
    path: Path,
    settings: Settings,
    options: SweepOptions,
    *,
    output: Path | None = None,
    others: Sequence[Output] = (),
    force: bool = False,
    progress: Progress = silent,
) -> Swept:
    """Measure every point that ``output`` does not hold already, and write them there.

    Results of another model or of other options are renamed, never overwritten, unless
    ``force`` is given.

    Raises:
        DacconvError: whatever is wrong with the input, the options or the results file.
    """
    settings = replace(settings, samples=settings.samples or SAMPLES)
    digest, grid, where = Digest(path), grid_of(options, settings.method), workers_of(options)
    if output is not None:
        check_suffix(output)
    outputs = [] if output is None else [Output(output, "-o", continued=True)]
    inputs = [path, *input_files(settings), *input_files_of_sweep(options)]
    check_outputs([*outputs, *others], inputs, force=force)
    if output is not None and output.exists() and not force:
        read_sweep(output)  # a file of something else is found out before the work
    model = open_with(path, settings)
    check_outputs([*outputs, *others], [*model.files, *inputs], force=force)
    prepared = prepare(
        model,
        grid,
        Selected(settings.selection, settings.allow_costlier),
        _setup(settings, options, grid),
        where=where,
        recorded=_recorded(settings, options, grid),
        digest=digest,
        progress=progress,
    )
    known, told = _known(prepared, output, force=force)
    missing = prepared.missing(known)
    journal = None
    if output is not None:
        journal = Journal(output, prepared.blank, list(known))
        journal.begin()
    rows = counted(
        prepared.measured(missing),
        len(missing),
        progress,
        journal.add if journal else lambda row: None,
    )
    done = prepared.finished([*known, *rows])
    if output is not None:
        Journal(output, prepared.blank, list(done.points)).begin()
    return Swept(done, told)


def input_files_of_sweep(options: SweepOptions) -> list[Path]:
    """The files that the options of a sweep name, which it reads."""
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
    """What the numbers depend on, besides the model."""
    apart = {f.name for f, declaration in Settings.declared() if not declaration.numbers}
    recorded = {k: v for k, v in settings.changed().items() if k not in apart}
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


def _known(
    prepared: Prepared, output: Path | None, *, force: bool
) -> tuple[tuple[PointResult, ...], tuple[str, ...]]:
    """The rows that the results file holds already, and what is to be told about it."""
    if output is None or force or not output.exists():
        return (), ()
    old = read_sweep(output)
    changed = _changes(old.header, prepared.blank.header)
    if changed:
        kept = set_aside(output)
        return (), (f"starting afresh, for {changed}; the old results are now {kept}",)
    missing = len(prepared.missing(old.points))
    count = len(prepared.points)
    told = [f"{count - missing} of {count} points are in {output} already"]
    labels = {point.label for point in prepared.points}
    if others := sum(row.label not in labels for row in old.points):
        told.append(f"{others} points of other modes or ranks stay in it")
    return old.points, ("; ".join(told),)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What results depend on that has changed, in words; empty where nothing has."""
    if old.get("sha256") != new["sha256"]:
        return "the model has changed"
    if old.get("dacconv") != new["dacconv"]:
        return f"they were made by dacconv {old.get('dacconv')}"
    before, now = old.get("options") or {}, new["options"]
    names = [n for n in sorted({*before, *now}) if before.get(n) != now.get(n)]
    told = [f"--{n.replace('_', '-')} was {before.get(n)} and is {now.get(n)}" for n in names]
    return ", ".join(told)
