"""A sweep as the command line asks for it: a model's file in, a results file out and resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dacconv.conversion.gates import parse_share
from dacconv.errors import UsageError
from dacconv.jobs.convert import open_with
from dacconv.planning import Selection
from dacconv.settings import Settings
from dacconv.support.files import Digest, require_folder
from dacconv.support.progress import Progress, silent
from dacconv.sweeps.data import read_data
from dacconv.sweeps.files import Journal, check_suffix, read_sweep, set_aside
from dacconv.sweeps.measure import SAMPLES, Setup
from dacconv.sweeps.points import BUDGET, SINGLE, Grid, parse_ranks
from dacconv.sweeps.pool import Where
from dacconv.sweeps.results import PointResult, Sweep
from dacconv.sweeps.run import Prepared, counted, prepare

RANKS = "1-5"
APART = ("layers", "skip", "threads", "verify", "max_error", "min_saving", "min_agreement")
"""Settings that change no number of a point."""

__all__ = ["SAMPLES", "Swept", "Wanted", "sweep_file", "wanted"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a sweep does, besides what every command does with a model.

    ``task`` is ``FILE.py:FUNCTION``, ``data`` a ``.npz`` of labelled images.
    """

    grid: Grid
    where: Where = field(default_factory=Where)
    bench: bool = False
    task: str | None = None
    data: Path | None = None


@dataclass(frozen=True, slots=True)
class Swept:
    """The results, and what a person must be told of how they came about."""

    sweep: Sweep
    told: tuple[str, ...]


def wanted(
    modes: Sequence[str],
    ranks: str | None,
    budgets: str | None,
    *,
    jobs: int | None = None,
    dask: str | None = None,
    bench: bool = False,
    task: str | None = None,
    data: Path | None = None,
) -> Wanted:
    """What a command line asks for; modes may be given as ``single,last-k``.

    Raises:
        UsageError: what cannot be, or excludes each other.
    """
    names = tuple(name.strip() for text in modes for name in text.split(","))
    if jobs is not None and dask is not None:
        raise UsageError("--jobs are processes of this machine, --dask asks a cluster: give one")
    shares = tuple(
        parse_share(text.strip(), "--budgets") for text in (budgets.split(",") if budgets else ())
    )
    if shares and BUDGET not in names:
        raise UsageError("budgets are for --mode budget", where="--budgets")
    grid = Grid(tuple(dict.fromkeys(names)) or (SINGLE,), parse_ranks(ranks or RANKS), shares)
    return Wanted(grid, Where(jobs, dask), bench, task, data)


def sweep_file(
    path: Path,
    settings: Settings,
    asked: Wanted,
    *,
    output: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Swept:
    """Measure every point that ``output`` does not hold already, and write them there.

    Results of another model or of other options are renamed, never overwritten, unless
    ``force`` is given.

    Raises:
        DacconvError: whatever is wrong with the input, the options or the results file.
    """
    digest = Digest(path)
    if output is not None:
        check_suffix(output)
        require_folder(output)
        if output.exists() and not force:
            read_sweep(output)  # a file of something else is found out before the work
    prepared = prepare(
        open_with(path, settings),
        asked.grid,
        Selection(settings.first_k, settings.last_k, settings.layers, settings.skip),
        _setup(settings, asked),
        where=asked.where,
        allow_costlier=settings.allow_costlier,
        options=_options(settings, asked),
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


def _setup(settings: Settings, wanted: Wanted) -> Setup:
    return Setup(
        samples=settings.samples,
        seed=settings.seed,
        threads=settings.threads or (None if wanted.where.jobs is None else 1),
        fuse=settings.fuse,
        kernel_scale=settings.kernel_scale,
        bench=wanted.bench,
        task=wanted.task,
        data=read_data(wanted.data) if wanted.data else None,
        calibrate=_calibration(settings, wanted),
        input_options=settings.input_options(),
        device=settings.device,
    )


def _options(settings: Settings, wanted: Wanted) -> dict[str, Any]:
    """What the numbers depend on, besides the model."""
    options = {k: v for k, v in settings.changed().items() if k not in APART}
    options |= {name: getattr(settings, name) for name in ("samples", "fuse", "kernel_scale")}
    options["calibrate"] = _calibration(settings, wanted)
    if wanted.bench:
        options |= {"bench": True, "threads": settings.threads}
    if wanted.task is not None:
        options["eval"] = wanted.task
        source = Path(wanted.task.rpartition(":")[0])
        if source.is_file():
            options["eval_sha256"] = Digest(source).of(source)
    if wanted.data is not None:
        options |= {"data": wanted.data.name, "data_sha256": Digest(wanted.data).of(wanted.data)}
    return options


def _calibration(settings: Settings, wanted: Wanted) -> str:
    """As ``convert`` has it: inputs are found with a budget, and not used without."""
    return settings.calibrate or ("auto" if BUDGET in wanted.grid.modes else "none")


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
