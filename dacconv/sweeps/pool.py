"""Measuring points in several processes, on this machine or on a Dask cluster, with joblib."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

from dacconv.errors import DacconvError, UnsupportedError, UsageError
from dacconv.formats import open_model
from dacconv.formats.base import LoadOptions
from dacconv.support.interrupts import keep_interrupts_from_processes
from dacconv.sweeps.measure import Bench, Setup
from dacconv.sweeps.points import Point
from dacconv.sweeps.results import PointResult

CONNECT_SECONDS = 10
PART = 8
"""The number of points of one task: enough to share the computation of common prefixes."""


@dataclass(frozen=True, slots=True)
class Workers:
    """The processes that measure: ``jobs`` on this machine, or those of a Dask scheduler."""

    jobs: int | None = None
    dask: str | None = None

    @property
    def parallel(self) -> bool:
        """Whether several points are measured at the same time."""
        return self.dask is not None or (self.jobs or 1) > 1


THIS_PROCESS = Workers()
"""No other processes."""


@dataclass(frozen=True, slots=True)
class Work:
    """The data that a process needs to measure points; ``token`` is unique to a sweep."""

    path: Path
    load: LoadOptions
    setup: Setup
    token: str


def parts(points: Sequence[Point], size: int = PART) -> Iterator[list[Point]]:
    """The points in order, in lists of at most ``size``."""
    rest = iter(points)
    while part := list(islice(rest, size)):
        yield part


def measure_all(work: Work, points: Sequence[Point], workers: Workers) -> Iterator[PointResult]:
    """A row for each point, in the order in which they are finished.

    Every process opens the model once.

    Raises:
        UnsupportedError: a process of this machine died.
        UsageError: the cluster cannot be reached, or is not installed.
    """
    import joblib

    if _starting is not None:
        _starting.join()
    with _backend(workers):
        run: Callable[..., Any] = joblib.Parallel(
            n_jobs=-1 if workers.dask else workers.jobs,
            return_as="generator_unordered",
            batch_size=1,
        )
        tasks = (joblib.delayed(_measure_part)(work, part) for part in parts(points))
        try:
            keep_interrupts_from_processes()
            for rows in run(tasks):
                yield from rows
        except DacconvError:
            raise
        except Exception as error:
            if type(error).__name__ not in ("TerminatedWorkerError", "KilledWorker"):
                raise
            raise UnsupportedError(
                "a process that measured points was killed, perhaps for lack of memory",
                hint="finished points are in the results file; the same command continues it",
            ) from error


def start(workers: Workers) -> None:
    """Start the processes of this machine in the background.

    They import modules while this process prepares the sweep.
    """
    global _starting
    if workers.jobs and workers.parallel:
        _starting = Thread(target=_start_workers, args=(workers,), daemon=True)
        _starting.start()


_starting: Thread | None = None


def _start_workers(workers: Workers) -> None:
    import joblib

    # errors are reported when the points are measured
    keep_interrupts_from_processes()
    with suppress(Exception), _backend(workers):
        joblib.Parallel(n_jobs=workers.jobs)(
            joblib.delayed(_import_runtime)() for _ in range(workers.jobs or 1)
        )


def _import_runtime() -> None:
    """Runs in a worker, which imports this module for it."""
    _allow_memory()
    with suppress(ImportError):
        import_module("onnxruntime")


def _allow_memory() -> None:
    """Let this worker grow: joblib takes a worker that gains 300 MB for one that leaks and ends it.

    A worker that opens a model gains as much; joblib has no option for that.
    """
    with suppress(ImportError):
        from joblib.externals.loky import process_executor

        vars(process_executor)["_MAX_MEMORY_LEAK_SIZE"] = math.inf


_benches: dict[str, Bench] = {}


def _measure_part(work: Work, points: Sequence[Point]) -> list[PointResult]:
    """Runs in a worker; its model stays open for the next points of the same sweep."""
    _allow_memory()
    if work.token not in _benches:
        _benches.clear()
        _benches[work.token] = Bench(open_model(work.path, work.load), work.setup)
    return list(_benches[work.token].measure(points))


def _backend(workers: Workers) -> AbstractContextManager[Any]:
    import joblib

    if workers.dask is not None:
        return _cluster(workers.dask)
    local: AbstractContextManager[Any] = joblib.parallel_config("loky", inner_max_num_threads=1)
    return local


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Send joblib's tasks to the scheduler at ``address``."""
    import joblib

    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError(
            "dask.distributed is not installed",
            where=f"--dask {address}",
            hint="pip install 'dacconv[cluster]'",
        ) from error
    try:
        connect: Callable[..., Any] = Client
        client = connect(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise UsageError(
            f"no scheduler answers: {' '.join(str(error).split())}",
            where=f"--dask {address}",
            hint="start one with `dask scheduler`, and workers with `dask worker ADDRESS`",
        ) from error
    with client, joblib.parallel_config("dask", client=client):
        if not client.scheduler_info()["workers"]:
            client.wait_for_workers(1, timeout=30)
        yield
