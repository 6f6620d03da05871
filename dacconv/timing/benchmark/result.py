"""The result of a benchmark: plain values for the terminal, JSON and plots."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dacconv.timing.intervals import Interval

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine of a benchmark. ``load`` is the load average over the minute before it."""

    processor: str
    cores: int
    memory_gib: float | None
    system: str
    python: str
    load: float | None


@dataclass(frozen=True, slots=True)
class Subject:
    """One of the models. ``size`` is in bytes, with the files that belong to it."""

    name: str
    path: str
    format: str
    runtime: str
    size: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of a worker process in bytes; None where the system does not report it.

    ``runtime`` is the memory with the runtime imported and no model loaded, ``peak`` the most since
    the process started, ``running`` the most while the model ran, and ``device`` the most that
    torch allocated on an accelerator.
    """

    runtime: int | None
    peak: int | None
    running: int | None
    device: int | None = None

    @property
    def above_runtime(self) -> int | None:
        """The memory of loading and running the model, above that of the runtime."""
        if self.peak is None or self.runtime is None:
            return None
        return self.peak - self.runtime


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one run of one model.

    ``per_round`` are the medians of the rounds. ``ms`` is their median with its confidence
    interval, ``first_quartile`` and ``third_quartile`` are their quartiles. ``ratio`` is the first
    model's time over this one's, round by round; None for the first. ``interrupted`` is the share
    of the runs in which other work took the core of a thread; these runs are left out where a
    round has others.
    """

    model: str
    ms: Interval
    first_quartile: float
    third_quartile: float
    runs: int
    interrupted: float
    per_round: tuple[float, ...]
    memory: Memory
    ratio: Interval | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """All models under one setting, in alternating rounds.

    ``threads`` is None for the runtime's default. ``fresh``: every round had new processes.
    """

    batch: int
    threads: int | None
    inputs: tuple[str, ...]
    rounds: int
    timings: tuple[Timing, ...]
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Milliseconds of one layer, or of one type of operator, in each of the models.

    ``layer`` is false for a type of operator and for the time between operators. The time is None
    for a model that does not have it.
    """

    name: str
    layer: bool
    ms: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """The time of every layer by the runtime's profiler, which takes some time itself.

    The rows of a model add up to its entry of ``total``: the mean milliseconds of the fastest
    quarter of the ``runs``, in the fastest of several rounds.
    """

    batch: int
    threads: int | None
    rows: tuple[LayerTime, ...]
    total: tuple[float, ...]
    runs: int


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Models side by side. The first is the original, to which the others are compared."""

    machine: Machine
    models: tuple[Subject, ...]
    device: str
    dtype: str | None
    channels_last: bool
    seed: int
    cases: tuple[Case, ...]
    layers: LayerTimes | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data; ``docs/bench.md`` documents the schema."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}
