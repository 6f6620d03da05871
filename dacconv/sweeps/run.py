"""A whole sweep: the points, their measurement, the results."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dacconv import __version__
from dacconv.conversion import pipeline
from dacconv.conversion.report import CONVENTION
from dacconv.errors import UsageError
from dacconv.formats.base import Model
from dacconv.graph.types import Layer, Plan
from dacconv.planning import RankOptions, Selection, select
from dacconv.planning.plans import eligible_by, methods_of
from dacconv.support.files import Digest
from dacconv.support.progress import Progress, silent
from dacconv.support.user_code import absolute
from dacconv.sweeps.judges import passes
from dacconv.sweeps.measure import Bench, Setup
from dacconv.sweeps.points import Grid, Point, points
from dacconv.sweeps.pool import ALONE, Where, Work, measure_all, parts, start
from dacconv.sweeps.results import PointResult, Sweep, bare

VERSION = 1
"""Of the results' schema."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A sweep before its points are measured: ``blank`` has the original's row alone."""

    bench: Bench
    points: tuple[Point, ...]
    blank: Sweep
    where: Where

    def missing(self, known: Iterable[PointResult]) -> tuple[Point, ...]:
        """The points that are not among the results."""
        found = {(row.label, row.choices) for row in known}
        return tuple(p for p in self.points if (p.label, p.plan.choices) not in found)

    def measured(self, wanted: Sequence[Point]) -> Iterator[PointResult]:
        """A row for each wanted point, as they are done.

        Raises:
            UsageError: the user's function fails, or the cluster cannot be reached.
            UnsupportedError: the runtime rejects a point's model.
        """
        names = set(self.blank.original.task)
        for row in self._measured(wanted):
            if set(row.task) != names:
                raise UsageError(
                    f"your function gave {', '.join(row.task)} for point {row.label}, and "
                    f"{', '.join(names)} for the original",
                    where="--eval",
                )
            yield row

    def _measured(self, wanted: Sequence[Point]) -> Iterator[PointResult]:
        bench = self.bench
        if wanted and _elsewhere(bench, self.where):
            yield from measure_all(_work(bench), wanted, self.where)
            return
        at_once = self.where.jobs if self.where.parallel else None
        # several passes over the inputs finish all their points at the end: few at a time then
        streams = all(len(passes(j.batches, bench.largest)) < 2 for j in bench.judges)
        for part in parts(wanted, max(len(wanted), 1) if streams else 16):
            yield from bench.measure(part, at_once=at_once)

    def finished(self, rows: Iterable[PointResult]) -> Sweep:
        """The sweep with its rows, in order of the points; rows of other points come last."""
        order = {point.label: index for index, point in enumerate(self.points)}
        known = sorted(rows, key=lambda row: order.get(row.label, len(order)))
        return replace(self.blank, rows=(self.blank.original, *known))


@dataclass(frozen=True, slots=True)
class Selected:
    """Which layers a sweep splits, and whether also where that makes them cost more."""

    selection: Selection = field(default_factory=Selection)
    allow_costlier: bool = False


def sweep(
    model: Model,
    grid: Grid,
    selected: Selected | None = None,
    setup: Setup | None = None,
    *,
    jobs: int = 1,
    progress: Progress = silent,
) -> Sweep:
    """Split a model in many ways and measure each against the original.

    With ``jobs`` above 1 the model is opened again, from its file, by as many processes.

    Raises:
        UsageError: options that contradict each other or the model; the user's task fails.
        UnsupportedError: the model has no layer that can be split.
    """
    prepared = prepare(
        model, grid, selected or Selected(), setup or Setup(), where=Where(jobs), progress=progress
    )
    rows = counted(prepared.measured(prepared.points), len(prepared.points), progress)
    return prepared.finished(rows)


def prepare(
    model: Model,
    grid: Grid,
    wanted: Selected,
    setup: Setup,
    *,
    where: Where = ALONE,
    recorded: Mapping[str, Any] | None = None,
    digest: Digest | None = None,
    progress: Progress = silent,
) -> Prepared:
    """Open the bench: the points of the grid, and the original's row.

    ``recorded`` are the options that the results depend on besides the model, for the header.
    """
    if where.parallel and setup.bench:
        raise UsageError(
            "timings need the machine for themselves",
            where="--bench",
            hint="leave --jobs and --dask out",
        )
    bench = Bench(model, setup, progress)
    if _elsewhere(bench, where):
        start(where)
    rows = eligible_by(bench.variants.layers, methods_of(grid.method))
    pipeline.require_eligible(rows, model.path)
    selected = select(rows, wanted.selection)

    selection = replace(wanted.selection, first_k=None, last_k=None)

    def budget_plan(share: float) -> Plan:
        ranks = RankOptions(method=grid.method, macs=share, allow_costlier=wanted.allow_costlier)
        calibrated = bench.calibrated
        return pipeline.plan(
            model, ranks, selection, setup.split, calibrated=calibrated, progress=progress
        )

    found = tuple(
        replace(point, plan=_settled(model, point.plan))
        for point in points(grid, rows, selected, budget_plan, allow_costlier=wanted.allow_costlier)
    )
    blank = Sweep(
        header={
            "sweep_version": VERSION,
            "dacconv": __version__,
            "sha256": (digest or Digest(model.path)).of(*model.files),
            "source": model.path.name,
            "format": model.format,
            "options": dict(_plain(setup) if recorded is None else recorded),
            "inputs": bench.told,
            "convention": CONVENTION,
        },
        layers=tuple(layer.name for layer in selected),
        spectra={layer.name: _shares(bench, layer, grid.method) for layer in selected},
        rows=(bench.original(),),
    )
    return Prepared(bench, found, blank, where)


def _elsewhere(bench: Bench, where: Where) -> bool:
    """Whether other processes measure the points.

    Threads of this one do as well, with less to begin with, where a runtime does nearly all of
    the work: a model that is run in parts, and no function of the user's.
    """
    if bench.unrun or not where.parallel:
        return False
    return where.dask is not None or bench.setup.task is not None or bench.variants.stops is None


def _work(bench: Bench) -> Work:
    """What other processes need; each runs the model with one thread, unless told otherwise."""
    load, setup = bench.model.options, bench.setup
    if load.arch is not None:
        load = replace(load, arch=absolute(load.arch))
    task = absolute(setup.task) if isinstance(setup.task, str) else setup.task
    setup = replace(setup, task=task, threads=setup.threads or 1)
    return Work(bench.model.path.resolve(), load, setup, secrets.token_hex(8))


def counted(
    rows: Iterable[PointResult],
    total: int,
    progress: Progress,
    then: Callable[[PointResult], None] = lambda row: None,
) -> Iterator[PointResult]:
    """The rows, each told to ``then`` and counted as progress."""
    progress("measuring points", 0, total)
    for done, row in enumerate(rows, start=1):
        then(row)
        progress("measuring points", done, total)
        yield row


def _settled(model: Model, plan: Plan) -> Plan:
    """The plan in the forms that ``convert`` would take, without what it notes about them."""
    return Plan(bare(pipeline.with_forms(model, plan).choices))


def _shares(bench: Bench, layer: Layer, method: str) -> tuple[float, ...]:
    """The share of the squared singular values that every rank adds."""
    values = bench.variants.spectra(layer.name, method).values
    if values is None:
        return ()
    energy = (values**2).sum(axis=0)
    total = float(energy.sum())
    return tuple(float(value) / total if total else 0.0 for value in energy)


def _plain(setup: Setup) -> dict[str, Any]:
    """The setup as data, for a sweep that was not started with options."""
    task = setup.task
    if task is not None and not isinstance(task, str):
        task = getattr(task, "__qualname__", "task")
    data = {
        "samples": setup.check.samples,
        "seed": setup.check.seed,
        "threads": setup.threads,
        "fuse": setup.split.fuse,
        "kernel_scale": setup.split.kernel_scale,
        "bench": setup.bench,
        "task": task,
        "data": setup.data.name if setup.data else None,
        "calibrate": setup.calibrate,
    }
    return {key: value for key, value in data.items() if value is not None}
