"""What every model that is timed offers, and what a profile of it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from dacconv.formats.base import Feeds


@dataclass(frozen=True, slots=True)
class Setting:
    """How a model is run when it is timed.

    ``threads`` None is the runtime's own choice. ``device``, ``dtype`` (float16, bfloat16) and
    ``channels_last`` are for torch.
    """

    threads: int | None = None
    device: str = "cpu"
    dtype: str | None = None
    channels_last: bool = False


@dataclass(frozen=True, slots=True)
class Span:
    """What a runtime's profiler tells of one operator: milliseconds per run.

    ``name`` is the operator's in the runtime, or the module that it belongs to; ``index`` its
    place in the file, where the runtime tells that; ``kind`` the runtime's operator.
    """

    name: str
    kind: str
    ms: float
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """The operators of a run, in order, and the milliseconds of the whole run.

    Means over the fastest quarter of ``runs``: there the operators still add up, which medians
    of each would not where something else disturbs now this one and now that.
    """

    spans: tuple[Span, ...]
    ms: float
    runs: int


SpanKey = tuple[str, str, int | None]
"""Name, kind and index of a span."""


def fastest(times: Mapping[SpanKey, Mapping[int, float]], wholes: Sequence[float]) -> Profile:
    """The profile of runs whose milliseconds are ``wholes``; ``times`` are by run, or missing."""
    order = sorted(range(len(wholes)), key=wholes.__getitem__)
    kept = order[: max(1, len(order) // 4)]
    spans = tuple(
        Span(name, kind, fmean(of.get(run, 0.0) for run in kept), index)
        for (name, kind, index), of in times.items()
    )
    return Profile(spans, fmean(wholes[run] for run in kept), len(wholes))


Step = Callable[[], None]
"""Runs a model once on inputs that it holds, and returns when that is done."""


class Timed(Protocol):
    """A model that is loaded to be timed, by the runtime alone."""

    def step(self, feeds: Feeds) -> Step:
        """A function that runs the model on these inputs."""
        ...

    def profile(self, feeds: Feeds, runs: int) -> Profile:
        """Run it under the runtime's profiler."""
        ...

    def device_peak(self) -> int | None:
        """The most bytes that the model held on an accelerator; None on a CPU."""
        ...
