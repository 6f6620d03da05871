"""What a benchmark found: plain values, the same for the terminal, JSON and plots."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dacconv.timing.intervals import Interval

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured. ``load`` is the load average over a minute, before anything ran."""

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
    """Peak resident memory of a worker process in bytes; None where the system does not tell.

    ``runtime`` is what the process held with the runtime imported and no model loaded;
    ``peak`` the most it held from its start, ``running`` the most while the model ran.
    ``device`` is the most that torch held on an accelerator.
    """

    runtime: int | None
    peak: int | None
    running: int | None
    device: int | None = None

    @property
    def above_runtime(self) -> int | None:
        """What loading and running the model took on top of the runtime."""
        if self.peak is None or self.runtime is None:
            return None
        return self.peak - self.runtime


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one run of one model.

    ``ms`` is the median over the rounds of the round's median, with its interval of
    confidence; ``first_quartile`` and ``third_quartile`` are those of the rounds. ``ratio``
    is the first model's time over this one's, from the rounds in which both ran; None for
    the first. ``per_round`` are the medians of the rounds. ``interrupted`` is the share of
    the runs in which a thread had to leave its core to other work; they are left out where
    a round has others.
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
    """All models under one setting, in alternating rounds. ``threads`` None: the runtime's own.

    ``fresh``: every round had processes of its own.
    """

    batch: int
    threads: int | None
    inputs: tuple[str, ...]
    rounds: int
    timings: tuple[Timing, ...]
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Milliseconds of one layer, or of one kind of operator, in each of the models in turn.

    ``layer`` is false for a kind of operator, and for what lies between the operators. None
    stands for a model that has nothing of it.
    """

    name: str
    layer: bool
    ms: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """Where the time goes, under the runtime's profiler, which itself takes some.

    The rows of a model add up to its entry of ``total``: the mean of the fastest quarter of
    the ``runs`` of the fastest of several rounds, milliseconds.
    """

    batch: int
    threads: int | None
    rows: tuple[LayerTime, ...]
    total: tuple[float, ...]
    runs: int


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Models side by side: the first is the original, the others are compared with it."""

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
