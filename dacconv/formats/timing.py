"""What a format offers to the timing of models and layers, and the profile of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dacconv.formats.base import Feeds, LoadOptions, Model
from dacconv.graph.types import Branches, Conv


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
    """The time of one operator in a runtime's profile, in milliseconds per run.

    ``name`` is the operator's name in the runtime, or the module that it belongs to; ``index`` its
    place in the file, where the runtime reports it; ``kind`` the runtime's type of operator.
    """

    name: str
    kind: str
    ms: float
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """The operators of a run, in order, and the milliseconds of the whole run.

    Means over the fastest quarter of ``runs``. The means of the operators add up to the mean of the
    run; medians would not, because other work delays another operator in each run.
    """

    spans: tuple[Span, ...]
    ms: float
    runs: int


SpanKey = tuple[str, str, int | None]
"""Name, kind and index of a span."""


def fastest(times: Mapping[SpanKey, Mapping[int, float]], wholes: Sequence[float]) -> Profile:
    """The profile of runs that took ``wholes`` milliseconds.

    ``times`` are the milliseconds of each operator by the index of the run; a run in which it was
    not executed is missing.
    """
    from statistics import fmean  # slow to import, and needed for profiles only

    order = sorted(range(len(wholes)), key=wholes.__getitem__)
    fastest_runs = order[: max(1, len(order) // 4)]
    spans = tuple(
        Span(name, kind, fmean(of.get(run, 0.0) for run in fastest_runs), index)
        for (name, kind, index), of in times.items()
    )
    return Profile(spans, fmean(wholes[run] for run in fastest_runs), len(wholes))


Step = Callable[[], None]
"""Runs a model once on inputs that it holds, and returns when the outputs are computed."""


class TimedModel(Protocol):
    """A model that the runtime has loaded in order to time it."""

    def step(self, feeds: Feeds) -> Step:
        """A function that runs the model on these inputs."""
        ...

    def profile(self, feeds: Feeds, runs: int) -> Profile:
        """The profile of so many runs, taken by the runtime's profiler."""
        ...

    def device_peak(self) -> int | None:
        """The most bytes that the model held on an accelerator; None on a CPU."""
        ...


class TimingAdapter(Protocol):
    """How the models and layers of one runtime are timed.

    ``dacconv.formats.onnx.timing`` and ``dacconv.formats.torch.timing`` are modules of this type.
    """

    def import_runtime(self) -> None:
        """Import the runtime, so that its memory can be measured before a model is loaded.

        Raises:
            UnsupportedError: the runtime is not installed.
        """
        ...

    def open_model(self, path: Path, options: LoadOptions) -> Model:
        """The model behind dacconv's protocol: its inputs and its graph."""
        ...

    def load_timed(self, path: Path, options: LoadOptions, setting: Setting) -> TimedModel:
        """The model, loaded by the runtime as the setting says.

        Raises:
            UsageError: the runtime does not have what the setting asks for.
        """
        ...

    def layer_runner(
        self,
        conv: Conv,
        shape: tuple[int, ...],
        branches: Branches | None,
        *,
        threads: int,
        device: str,
    ) -> AbstractContextManager[Step]:
        """A function that runs one layer: the conv, or the ``branches`` in its place.

        ``shape`` is that of its input.

        Raises:
            UsageError: the device does not exist.
        """
        ...

    def layer_overhead(
        self, conv: Conv, shape: tuple[int, ...], *, threads: int, seconds: float
    ) -> float:
        """The part of the ``seconds`` of a run of :meth:`layer_runner` that is not the conv's."""
        ...

    def device_name(self, name: str) -> str:
        """The device with the name of its model: ``cuda:0 NVIDIA H100``.

        Raises:
            UsageError: the device does not exist.
        """
        ...
