"""The time of the whole network beside those of its layers: what a budget of time is about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import numpy as np

from dacconv.errors import UsageError
from dacconv.forms import AUTO, MULTIPLIER
from dacconv.models.base import Model
from dacconv.policies import Times
from dacconv.tuning.speeds import ONNXRUNTIME
from dacconv.tuning.timer import Timer, side_by_side
from dacconv.types import Choice, Layer, Plan, Skipped
from dacconv.verification import make_inputs, why_not

_NANO = 1e9
NOISE = 1.02
"""Up to this much more time is not told from none."""


def layer_times(
    model: Model,
    layers: Sequence[Layer],
    timer: Timer,
    form: str,
    carried_out: Callable[[Plan], Model],
) -> Times:
    """What the network takes, and its layers at every rank in their fastest form.

    ``carried_out`` converts the model as a plan says.

    Raises:
        UsageError: the model cannot be run.
    """
    if reason := why_not(model):
        raise UsageError(f"the model cannot be timed: {reason}", where="--latency")

    def of(layer: Layer, rank: int | None) -> int | None:
        once = timer.original(layer)
        if once is None:
            return None
        whole = once * len(layer.sites) * _NANO
        if rank is None:
            return round(whole)
        forms = model.forms(layer.geometry, own_layers=False) if form == AUTO else (form,)
        ratios = timer(layer, rank, forms if rank > 1 else (MULTIPLIER,))
        return round(min(ratios.values()) * whole) if ratios else None

    return Times(whole=_whole(model, layers, timer, of, carried_out), of=of)


def _whole(
    model: Model,
    layers: Sequence[Layer],
    timer: Timer,
    of: Callable[[Layer, int | None], int | None],
    carried_out: Callable[[Plan], Model],
) -> int:
    """What the network takes on the scale of its layers' times, in nanoseconds.

    Layers that are timed one by one add up to another time than they take together. So the
    network is split at rank 1 where that saves time, and timed beside the original: what the
    layers save by themselves is that share of the whole.
    """
    choices, saved = [], 0
    for layer in layers:
        if layer.skip is not None:
            continue
        before, after = of(layer, None), of(layer, 1)
        if before is not None and after is not None and after < before:
            choices.append(Choice(layer.name, "dac", 1))
            saved += before - after
    if choices and _own_runtime(model, timer) and timer.target.device == "cpu":
        ratio = slowdown(model, carried_out(Plan(tuple(choices))), timer.target.threads)
        if ratio < 1 / NOISE:
            return round(saved / (1 - ratio))
    return round(whole_seconds(model, timer.target.threads) * _NANO)


def whole_seconds(model: Model, threads: int) -> float:
    """The time of a run of the model on a seeded input."""
    return _side_by_side({"model": model}, threads)["model"]


def slowdown(original: Model, converted: Model, threads: int) -> float:
    """The time of a run of the converted model over the original's."""
    times = _side_by_side({"original": original, "converted": converted}, threads)
    return times["converted"] / times["original"]


class Converted(Protocol):
    """A conversion, as :class:`dacconv.pipeline.Conversion` is one."""

    @property
    def model(self) -> Model:
        """The converted model."""
        ...

    @property
    def plan(self) -> Plan:
        """What was done to it."""
        ...


C = TypeVar("C", bound=Converted)


def without_slower(original: Model, done: C, timer: Timer, carried_out: Callable[[Plan], C]) -> C:
    """The conversion, with as many of its splits as make the network as a whole faster.

    Layers that gain on their own may not gain together, in small networks above all: as long as
    the whole is slower, the half of the splits that saves less is given up. A model that the
    target's runtime cannot run here is taken as it is.
    """
    if why_not(original) or timer.target.device != "cpu" or not _own_runtime(original, timer):
        return done
    while done.plan.choices:
        ratio = slowdown(original, done.model, timer.target.threads)
        if ratio <= NOISE:
            break
        done = carried_out(_better_half(done.plan, timer, ratio))
    return done


def _own_runtime(model: Model, timer: Timer) -> bool:
    return (timer.target.runtime == ONNXRUNTIME) == (model.format == "onnx")


def _better_half(plan: Plan, timer: Timer, ratio: float) -> Plan:
    def saved(choice: Choice) -> float:
        return timer.saved.get((choice.layer, choice.rank, choice.form), 0.0)

    ranked = sorted(plan.choices, key=saved, reverse=True)
    kept = {choice.layer for choice in ranked[: len(ranked) // 2]}
    why = f"measured: with it the network as a whole takes {ratio:.2f} x the original's time"
    gone = (Skipped(c.layer, why) for c in plan.choices if c.layer not in kept)
    choices = tuple(choice for choice in plan.choices if choice.layer in kept)
    return Plan(choices, (*plan.skipped, *gone))


def _side_by_side(models: Mapping[str, Model], threads: int) -> dict[str, float]:
    """One model is open at a time: sessions that are alive together starve each other."""

    @contextmanager
    def opened(name: str) -> Iterator[Callable[[], None]]:
        held = [models[name].runner(threads=threads)]
        feeds = make_inputs(models[name].inputs(), np.random.default_rng(0))

        def run() -> None:
            held[0](feeds)

        try:
            yield run
        finally:
            held.clear()

    return side_by_side(list(models), opened)
