"""Timing layers side by side in the runtime that they will run in."""

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
"""Rounds go on until the least time of every case was met twice, within this factor."""
TELLING, RUNS = 6, 3
"""Rounds of a whole network, at least: fewer give no interval of 95 %; and runs in each."""
ENOUGH_SECONDS = 30.0
"""No further rounds of a whole network after that time."""
MIN_SECONDS = 0.01
"""How long one case is run in one round, at least; and at least once."""
BLOCK_SECONDS = 0.002
"""Shorter runs are timed so many together: threads that wait for each other make single runs vary,
and the luckiest of them says nothing of the rest."""

MOST_RUNS = 1000
"""Of a block."""

NN_CONSTRUCTS: frozenset[Construct] = frozenset({"sum", "parallel", "interleave"})
"""What a module of torch.nn layers, with those of ``dacconv.nn``, can be made of."""

Opened = AbstractContextManager[Callable[[], None]]


class Convs(Protocol):
    """What knows a layer's conv: a model, or one seen through its fusions."""

    def conv(self, node: str) -> Conv:
        """The conv at a node."""
        ...


@dataclass(slots=True, eq=False)
class Timer:
    """Measures layers as they are asked for, and remembers them in a file.

    ``seconds`` holds the time of each layer that was measured, as it is; ``saved`` what a
    layer saves at a rank in a form; ``cases`` counts what was not known already.
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
        """The time of a split in each form over the conv's, both run in turn."""
        if layer.geometry.output_size is None or layer.geometry.input_size is None:
            return {}
        times = self._times(layer, choice, forms)
        self.seconds[layer.name] = times["original"]
        for form in forms:
            self.saved[replace(choice, form=form, note="")] = times["original"] - times[form]
        return {form: times[form] / times["original"] for form in forms}

    def original(self, layer: Layer) -> float | None:
        """The seconds of the layer as it is; None where its sizes are not known."""
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
        known = self.cache.get(self.target, case)
        split = "" if choice is None else f" {choice.method} {rank_text(choice.rank)}"
        missing = [form for form in forms if f"{form}{split}" not in known]
        if missing or "original" not in known:
            self.progress(f"timing {layer.name}{split}", 0, 1)
            seconds = self._measure(conv, layer.geometry, choice, missing)
            first = known.get("original", seconds["original"])
            share = first / seconds["original"]
            new = {f"{form}{split}": seconds[form] * share for form in missing}
            known = self.cache.put(self.target, case, {"original": first, **new})
            self.cases += 1
        return {
            "original": known["original"],
            **{form: known[f"{form}{split}"] for form in forms},
        }

    def _measure(
        self, conv: Conv, geometry: Geometry, choice: Choice | None, forms: Sequence[str]
    ) -> dict[str, float]:
        """Seconds of the conv (``original``) and of each form."""
        shape = (geometry.batch, conv.in_channels, *(geometry.input_size or ()))
        conv = _like(conv)
        branches = None if choice is None else _branches(conv, geometry, choice)
        adapter, threads = adapter_for(self.target), self.target.threads

        def opened(name: str) -> Opened:
            lowered = None
            if name != "original" and branches is not None:
                lowered = lower(branches, name, Reordering(), constructs)
            return adapter.layer_runner(
                conv, shape, lowered, threads=threads, device=self.target.device
            )

        constructs = NN_CONSTRUCTS if self.target.runtime == TORCH_NN else EVERYTHING
        least = side_by_side(["original", *forms], opened)
        overhead = adapter.layer_overhead(conv, shape, threads=threads, seconds=least["original"])
        return {name: max(seconds - overhead, 0.0) for name, seconds in least.items()}


def adapter_for(target: Target) -> TimingAdapter:
    """What runs layers in the runtime of a target."""
    return timing_adapter("onnx" if target.runtime == ONNXRUNTIME else "torch")


def side_by_side(names: Sequence[str], opened: Callable[[str], Opened]) -> dict[str, float]:
    """The seconds that each takes, run in turn, one alive at a time.

    The least of all runs: what other work on the machine does to a time is to add to it.
    """
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(MOST_ROUNDS):
        for name, seconds in _round(names, opened, turn).items():
            times[name].append(seconds)
        if turn + 1 >= ROUNDS and all(_settled(found) for found in times.values()):
            break
    return {name: min(found) for name, found in times.items()}


def over_first(names: Sequence[str], opened: Callable[[str], Opened]) -> dict[str, Interval]:
    """The time of each over that of the first name, run in turn, one alive at a time.

    The median of the rounds' ratios, with its interval of 95 %: a session may have luck with where
    its threads come to lie, for as long as it lives, and the luckiest of few is no measure of a
    small network. Rounds go on until the intervals are narrow or leave out 1, or for
    ``ENOUGH_SECONDS``.
    """
    ratios: dict[str, list[float]] = {name: [] for name in names}
    told: dict[str, Interval] = {}
    started = time.perf_counter()
    for turn in range(MOST_ROUNDS):
        seconds = _round(names, opened, turn, RUNS)
        for name, found in seconds.items():
            ratios[name].append(found / seconds[names[0]])
        told = {name: median_interval(found) for name, found in ratios.items()}
        clear = all(one.high <= SETTLED * one.low or not _holds_1(one) for one in told.values())
        if turn + 1 >= TELLING and (clear or time.perf_counter() - started > ENOUGH_SECONDS):
            break
    return told


def _holds_1(interval: Interval) -> bool:
    return interval.low <= 1 <= interval.high


def _round(
    names: Sequence[str], opened: Callable[[str], Opened], turn: int, runs: int = 1
) -> dict[str, float]:
    found = {}
    for name in names if turn % 2 else reversed(names):
        with opened(name) as run:
            found[name] = _seconds(run, runs)
    return found


def _settled(times: Sequence[float]) -> bool:
    first, second, *_ = sorted(times)
    return second <= SETTLED * first


def _seconds(run: Callable[[], None], runs: int) -> float:
    """The least time of a run, or of a block of short ones, after two to warm up."""
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


def _like(conv: Conv) -> Conv:
    """A conv of that geometry in float32; its weights do not matter to its time."""
    weight = np.random.default_rng(0).standard_normal(conv.weight.shape).astype(np.float32)
    return replace(conv, weight=weight / np.sqrt(weight[0].size), bias=None)


def _branches(conv: Conv, geometry: Geometry, choice: Choice) -> Branches:
    """The chains of a split with random factors; their values do not matter to the time."""
    method, rng = METHODS[choice.method], np.random.default_rng(0)
    shapes = method.formula.shapes(geometry, choice.rank)
    factors = tuple(rng.standard_normal(shape).astype(np.float32) / 8 for shape in shapes)
    return method.chain(conv, factors)


def _case(conv: Conv, geometry: Geometry) -> str:
    """Everything that a layer's time depends on, in words."""
    parts = {
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
    return ", ".join(f"{name} {value}" for name, value in parts.items())
