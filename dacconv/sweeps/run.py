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
from dacconv.planning.base import first_method
from dacconv.planning.plans import eligible_by
from dacconv.support.files import Digest
from dacconv.support.progress import Progress, silent
from dacconv.support.user_code import absolute
from dacconv.sweeps.judges import passes
from dacconv.sweeps.measure import Bench, Setup
from dacconv.sweeps.points import Grid, Point, points
from dacconv.sweeps.pool import THIS_PROCESS, Work, Workers, measure_all, parts, start
from dacconv.sweeps.results import PointResult, Sweep, without_notes

VERSION = 1
"""The version of the schema of the results."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A sweep before its points are measured; ``blank`` has only the row of the original."""

    bench: Bench
    points: tuple[Point, ...]
    blank: Sweep
    workers: Workers

    def missing(self, rows: Iterable[PointResult]) -> tuple[Point, ...]:
        """The points that ``rows`` do not have."""
        measured = {(row.label, row.choices) for row in rows}
        return tuple(p for p in self.points if (p.label, p.plan.choices) not in measured)

    def measure(self, points: Sequence[Point]) -> Iterator[PointResult]:
        """A row for each of these points, in the order in which they are finished.

        Raises:
            UsageError: the user's function fails, or the cluster cannot be reached.
            UnsupportedError: the runtime rejects a point's model.
        """
        names = set(self.blank.original.task)
        for row in self._measure(points):
            if set(row.task) != names:
                raise UsageError(
                    f"your function returned {', '.join(row.task)} for point {row.label}, and "
                    f"{', '.join(names)} for the original",
                    where="--eval",
                )
            yield row

    def _measure(self, points: Sequence[Point]) -> Iterator[PointResult]:
        bench, workers = self.bench, self.workers
        if points and _needs_processes(bench, workers):
            yield from measure_all(_work(bench), points, workers)
            return
        at_once = workers.jobs if workers.parallel else None
        # with several passes over the inputs all points finish at the end, so few at a time then
        streams = all(len(passes(j.batches, bench.largest)) < 2 for j in bench.judges)
        for part in parts(points, max(len(points), 1) if streams else 16):
            yield from bench.measure(part, at_once=at_once)

    def sweep(self, rows: Iterable[PointResult]) -> Sweep:
        """The sweep with its rows, in order of the points; rows of other points come last."""
        order = {point.label: index for index, point in enumerate(self.points)}
        in_order = sorted(rows, key=lambda row: order.get(row.label, len(order)))
        return replace(self.blank, rows=(self.blank.original, *in_order))


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """The layers that a sweep may split; ``allow_costlier`` as in ``planning.RankOptions``."""

    selection: Selection = field(default_factory=Selection)
    allow_costlier: bool = False


def sweep(
    model: Model,
    grid: Grid,
    layers: LayerOptions | None = None,
    setup: Setup | None = None,
    *,
    jobs: int = 1,
    progress: Progress = silent,
) -> Sweep:
    """Convert a model with each plan of a grid, and measure each against the original.

    With ``jobs`` above 1, that many processes open the model's file.

    Raises:
        UsageError: options contradict each other or the model, or the user's function fails.
        UnsupportedError: the model has no layer that can be split.
    """
    prepared = prepare(
        model,
        grid,
        layers or LayerOptions(),
        setup or Setup(),
        workers=Workers(jobs),
        progress=progress,
    )
    rows = counted(prepared.measure(prepared.points), len(prepared.points), progress)
    return prepared.sweep(rows)


def prepare(
    model: Model,
    grid: Grid,
    options: LayerOptions,
    setup: Setup,
    *,
    workers: Workers = THIS_PROCESS,
    recorded: Mapping[str, Any] | None = None,
    digest: Digest | None = None,
    progress: Progress = silent,
) -> Prepared:
    """Compute the points of the grid, and measure the original.

    ``recorded`` are the options that the results depend on besides the model, for the header.
    """
    if workers.parallel and setup.bench:
        raise UsageError(
            "times are measured without other work on the machine",
            where="--bench",
            hint="omit --jobs and --dask",
        )
    bench = Bench(model, setup, progress)
    if _needs_processes(bench, workers):
        start(workers)
    pipeline.require_floating(model)
    rows = eligible_by(bench.variants.layers, grid.methods)
    pipeline.require_eligible(rows, model.path)
    selected = select(rows, options.selection)

    selection = replace(options.selection, first_k=None, last_k=None)

    def budget_plan(share: float) -> Plan:
        ranks = RankOptions(method=grid.method, macs=share, allow_costlier=options.allow_costlier)
        calibrated = bench.calibrated
        return pipeline.plan(
            model, ranks, selection, setup.split, calibrated=calibrated, progress=progress
        )

    in_forms = tuple(
        replace(point, plan=_with_forms(model, point.plan))
        for point in points(
            grid, rows, selected, budget_plan, allow_costlier=options.allow_costlier
        )
    )
    blank = Sweep(
        header={
            "sweep_version": VERSION,
            "dacconv": __version__,
            "sha256": (digest or Digest(model.path)).of(*model.files),
            "source": model.path.name,
            "format": model.format,
            "options": dict(_plain(setup) if recorded is None else recorded),
            "inputs": bench.description,
            "convention": CONVENTION,
        },
        layers=tuple(layer.name for layer in selected),
        spectra={
            layer.name: _shares(bench, layer, first_method(layer, grid.methods).name)
            for layer in selected
        },
        rows=(bench.original(),),
    )
    return Prepared(bench, in_forms, blank, workers)


def _needs_processes(bench: Bench, workers: Workers) -> bool:
    """Whether other processes measure the points.

    Threads are as fast and start faster where the runtime does nearly all of the work: with a
    model that is run in parts, and no function of the user's.
    """
    if bench.unrun or not workers.parallel:
        return False
    return workers.dask is not None or bench.setup.task is not None or bench.variants.stops is None


def _work(bench: Bench) -> Work:
    """The work of other processes; each runs the model with one thread by default."""
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
    """The rows; calls ``then`` with each and reports the progress."""
    progress("measuring points", 0, total)
    for count, row in enumerate(rows, start=1):
        then(row)
        progress("measuring points", count, total)
        yield row


def _with_forms(model: Model, plan: Plan) -> Plan:
    """The plan in the forms that ``convert`` would choose, without its notes about them."""
    return Plan(without_notes(pipeline.with_forms(model, plan).choices))


def _shares(bench: Bench, layer: Layer, method: str) -> tuple[float, ...]:
    """The share of the squared singular values that every rank adds."""
    values = bench.variants.spectra(layer.name, method).values
    if values is None:
        return ()
    energy = (values**2).sum(axis=0)
    total = float(energy.sum())
    return tuple(float(value) / total if total else 0.0 for value in energy)


def _plain(setup: Setup) -> dict[str, Any]:
    """The setup as JSON-ready data, for a sweep that was not started from the command line."""
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
