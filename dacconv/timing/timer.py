"""Timing layers, unsplit and split, side by side in the runtime that they will run in."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import numpy as np

from dacconv.decompositions import METHODS
from dacconv.decompositions.forms import EVERYTHING, Reordering, lower
from dacconv.formats import timing_adapter
from dacconv.formats.base import Model
from dacconv.formats.timing import TimingAdapter
from dacconv.graph.plan_json import rank_text
from dacconv.graph.types import Branches, Choice, Construct, Conv, Geometry, Layer
from dacconv.support.progress import Progress, silent
from dacconv.timing.cache import Cache
from dacconv.timing.intervals import Interval, median_interval
from dacconv.timing.speeds import ONNXRUNTIME, TORCH_NN, Target

ROUNDS, MOST_ROUNDS = 4, 24
SETTLED = 1.03
"""Rounds end when the two least times of every case are within this factor of each other."""
NETWORK_ROUNDS, NETWORK_RUNS = 6, 3
"""The fewest rounds of a whole network, as fewer give no interval of 95 %, and runs in each."""
NETWORK_SECONDS = 30.0
"""No further rounds of a whole network are started after that time."""
MIN_SECONDS = 0.01
"""The least total time of the runs of one case in one round."""
BLOCK_SECONDS = 0.002
"""Shorter runs are timed in blocks of that length. Single ones vary because threads wait for each
other, so that the least of them is not typical."""

MOST_RUNS = 1000
"""The most runs in a block."""
LEAST_SECONDS = 1e-9
"""The least time of a layer. The runtime's overhead is measured separately and subtracted, so the
rest could be zero or negative for a fast layer."""

NN_CONSTRUCTS: frozenset[Construct] = frozenset({"sum", "parallel", "interleave"})
"""The constructs that a torch module can have with the layers of ``dacconv.nn``."""

OpenRunner = AbstractContextManager[Callable[[], None]]
"""Holds a model or layer open, and gives a function that runs it once."""


class Convs(Protocol):
    """A source of the convs of layers: a model, or a model with its fusions applied."""

    def conv(self, node: str) -> Conv:
        """The conv at a node."""
        ...


@dataclass(slots=True, eq=False)
class Timer:
    """Measures layers on demand, and caches the times in a file.

    ``seconds`` holds the time of each measured layer before it is split, ``saved`` the seconds that
    a split saves, and ``cases`` the number of measurements that were not in the file.
    """

    convs: Model | Convs
    target: Target
    cache: Cache
    progress: Progress = silent
    seconds: dict[str, float] = field(default_factory=dict)
    saved: dict[Choice, float] = field(default_factory=dict)
    cases: int = 0
    measured: ClassVar[bool] = True

    def __call__(self, layer: Layer, choice: Choice, forms: Sequence[str]) -> Mapping[str, float]:
        """The time of a split in each form over that of the conv, measured in alternation."""
        if layer.geometry.output_size is None or layer.geometry.input_size is None:
            return {}
        times = self._times(layer, choice, forms)
        self.seconds[layer.name] = times["original"]
        for form in forms:
            self.saved[replace(choice, form=form, note="")] = times["original"] - times[form]
        return {form: times[form] / times["original"] for form in forms}

    def original(self, layer: Layer) -> float | None:
        """The seconds of the unsplit layer; None where its sizes are not known."""
        if layer.geometry.output_size is None or layer.geometry.input_size is None:
            return None
        if layer.name not in self.seconds:
            self.seconds[layer.name] = self._times(layer, None, ())["original"]
        return self.seconds[layer.name]

    def _times(
        self, layer: Layer, choice: Choice | None, forms: Sequence[str]
    ) -> Mapping[str, float]:
        """The seconds of the conv (``original``) and of the split in each form."""
        conv = self.convs.conv(layer.sites[0])
        case = _case(conv, layer.geometry)
        times = self.cache.get(self.target, case)
        split = "" if choice is None else f" {choice.method} {rank_text(choice.rank)}"
        missing = [form for form in forms if f"{form}{split}" not in times]
        if missing or "original" not in times:
            self.progress(f"timing {layer.name}{split}", 0, 1)
            seconds = self._measure(conv, layer.geometry, choice, missing)
            first = times.get("original", seconds["original"])
            share = first / seconds["original"]
            new = {f"{form}{split}": seconds[form] * share for form in missing}
            times = self.cache.put(self.target, case, {"original": first, **new})
            self.cases += 1
        return {
            "original": times["original"],
            **{form: times[f"{form}{split}"] for form in forms},
        }

    def _measure(
        self, conv: Conv, geometry: Geometry, choice: Choice | None, forms: Sequence[str]
    ) -> dict[str, float]:
        """Seconds of the conv (``original``) and of each form."""
        size = geometry.input_size or ()
        if not conv.kernel:  # a linear layer is timed as a 1x1 conv
            conv, size = as_pointwise(conv), (math.prod(size), 1)
        shape = (geometry.batch, conv.in_channels, *size)
        conv = _like(conv)
        branches = None if choice is None else _branches(conv, geometry, choice)
        adapter, threads = adapter_for(self.target), self.target.threads

        def opened(name: str) -> OpenRunner:
            lowered = None
            if name != "original" and branches is not None:
                lowered = lower(branches, name, Reordering(), constructs)
            return adapter.layer_runner(
                conv, shape, lowered, threads=threads, device=self.target.device
            )

        constructs = NN_CONSTRUCTS if self.target.runtime == TORCH_NN else EVERYTHING
        least = side_by_side(["original", *forms], opened)
        overhead = adapter.layer_overhead(conv, shape, threads=threads, seconds=least["original"])
        return {name: max(seconds - overhead, LEAST_SECONDS) for name, seconds in least.items()}


def adapter_for(target: Target) -> TimingAdapter:
    """The adapter that runs layers in the runtime of a target."""
    return timing_adapter("onnx" if target.runtime == ONNXRUNTIME else "torch")


def side_by_side(names: Sequence[str], opened: Callable[[str], OpenRunner]) -> dict[str, float]:
    """The seconds of a run of each name, measured in turns; one is open at a time.

    They are the least of all runs, because other work on the machine can only add to a time.
    """
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(MOST_ROUNDS):
        for name, seconds in _round(names, opened, turn).items():
            times[name].append(seconds)
        if turn + 1 >= ROUNDS and all(_is_settled(values) for values in times.values()):
            break
    return {name: min(values) for name, values in times.items()}


def ratios_to_first(
    names: Sequence[str], opened: Callable[[str], OpenRunner]
) -> dict[str, Interval]:
    """The time of each name over that of the first, measured in turns; one is open at a time.

    It is the median of the rounds' ratios, with its interval of 95 %. The least time would mislead
    for a small network: a session is faster or slower for as long as it exists, depending on the
    cores that its threads run on. Rounds end when every interval is narrow or excludes 1, or
    after ``NETWORK_SECONDS``.
    """
    ratios: dict[str, list[float]] = {name: [] for name in names}
    intervals: dict[str, Interval] = {}
    started = time.perf_counter()
    for turn in range(MOST_ROUNDS):
        seconds = _round(names, opened, turn, NETWORK_RUNS)
        for name, value in seconds.items():
            ratios[name].append(value / seconds[names[0]])
        intervals = {name: median_interval(values) for name, values in ratios.items()}
        is_clear = all(_is_clear(interval) for interval in intervals.values())
        is_late = time.perf_counter() - started > NETWORK_SECONDS
        if turn + 1 >= NETWORK_ROUNDS and (is_clear or is_late):
            break
    return intervals


def _is_clear(interval: Interval) -> bool:
    """Whether an interval of ratios is narrow, or excludes 1."""
    is_narrow = interval.high <= SETTLED * interval.low
    return is_narrow or not interval.low <= 1 <= interval.high


def _round(
    names: Sequence[str], opened: Callable[[str], OpenRunner], turn: int, runs: int = 1
) -> dict[str, float]:
    """The seconds of a run of each; the order is reversed from round to round."""
    seconds = {}
    for name in names if turn % 2 else reversed(names):
        with opened(name) as run:
            seconds[name] = _seconds(run, runs)
    return seconds


def _is_settled(times: Sequence[float]) -> bool:
    first, second, *_ = sorted(times)
    return second <= SETTLED * first


def _seconds(run: Callable[[], None], runs: int) -> float:
    """The least time of a run, or of a block of short runs, after two runs to warm up."""
    run()
    count = math.ceil(BLOCK_SECONDS / max(_timed(run, 1), 1e-9))
    count = min(max(count, 1), MOST_RUNS)
    times: list[float] = []
    while len(times) < runs or sum(times) * count < MIN_SECONDS:
        times.append(_timed(run, count) / count)
    return min(times)


def _timed(run: Callable[[], None], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        run()
    return time.perf_counter() - started


def as_pointwise(conv: Conv) -> Conv:
    """A linear layer as a 2-D conv of a 1x1 kernel."""
    weight, none = conv.weight[..., None, None], ((0, 0), (0, 0))
    return replace(conv, weight=weight, stride=(1, 1), padding=none, dilation=(1, 1))


def _like(conv: Conv) -> Conv:
    """The conv with random float32 weights: its time does not depend on their values."""
    weight = np.random.default_rng(0).standard_normal(conv.weight.shape).astype(np.float32)
    return replace(conv, weight=weight / np.sqrt(weight[0].size), bias=None)


def _branches(conv: Conv, geometry: Geometry, choice: Choice) -> Branches:
    """The chains of a split with random factors: the time does not depend on their values."""
    method, rng = METHODS[choice.method], np.random.default_rng(0)
    shapes = method.formula.shapes(geometry, choice.rank)
    factors = tuple(rng.standard_normal(shape).astype(np.float32) / 8 for shape in shapes)
    return method.chain(conv, factors)


def _case(conv: Conv, geometry: Geometry) -> str:
    """The key of a layer in the file: everything that its time depends on."""
    parts: dict[str, object] = {
        "in": conv.in_channels,
        "out": conv.out_channels,
        "kernel": conv.kernel,
        "stride": conv.stride,
        "padding": conv.auto_pad or conv.padding,
        "dilation": conv.dilation,
        "mode": conv.pad_mode,
        "size": geometry.input_size,
        "batch": geometry.batch,
    }
    if conv.groups > 1:
        parts["groups"] = conv.groups
    if conv.transposed:
        parts["transposed"] = conv.output_padding
    return ", ".join(f"{name} {value}" for name, value in parts.items())
