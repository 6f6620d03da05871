"""The time of the whole network beside those of its layers: what a budget of time is about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from dacconv.decompositions import METHODS
from dacconv.decompositions.forms import AUTO, MULTIPLIER, possible
from dacconv.errors import UsageError
from dacconv.formats.base import Model
from dacconv.formats.inputs import make_inputs, why_not
from dacconv.graph.types import Choice, Layer, Plan, Skipped
from dacconv.planning import Times
from dacconv.planning.base import Price
from dacconv.timing.intervals import Interval
from dacconv.timing.speeds import ONNXRUNTIME
from dacconv.timing.timer import Opened, Timer, over_first, side_by_side

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

    def of(layer: Layer, choice: Choice | None) -> int | None:
        once = timer.original(layer)
        if once is None:
            return None
        whole = once * len(layer.sites) * _NANO
        if choice is None:
            return round(whole)
        ratios = timer(layer, choice, forms_of(model, layer, choice, form))
        return round(min(ratios.values()) * whole) if ratios else None

    return Times(whole=_whole(model, layers, timer, of, carried_out), of=of)


def forms_of(model: Model, layer: Layer, choice: Choice, form: str) -> Sequence[str]:
    """The forms to time a split in: the one that was asked for, or all that can be written."""
    forms = METHODS[choice.method].forms
    if not forms:
        return (AUTO,)
    if choice.rank == (1,):
        return (MULTIPLIER,)
    if form != AUTO:
        return (form,)
    return possible(model.constructs(len(layer.geometry.kernel), own_layers=False))


def _whole(
    model: Model,
    layers: Sequence[Layer],
    timer: Timer,
    of: Price,
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
        choice = Choice(layer.name, "dac", (1,))
        if METHODS[choice.method].refuses(layer):
            continue
        before, after = of(layer, None), of(layer, choice)
        if before is not None and after is not None and after < before:
            choices.append(choice)
            saved += before - after
    if choices and _runs_here(model, timer):
        split = carried_out(Plan(tuple(choices)))
        ratio = slowdown(model, split, timer.target.threads)
        if ratio.median < 1 / NOISE:
            return round(saved / (1 - ratio.median))
    return round(whole_seconds(model, timer.target.threads) * _NANO)


def whole_seconds(model: Model, threads: int) -> float:
    """The time of a run of the model on a seeded input."""
    return side_by_side(["model"], _opener({"model": model}, threads))["model"]


def slowdown(original: Model, converted: Model, threads: int) -> Interval:
    """The time of a run of the converted model over the original's."""
    models = {"original": original, "converted": converted}
    return over_first(list(models), _opener(models, threads))["converted"]


def fastest(
    original: Model, plans: Sequence[Plan], timer: Timer, carried_out: Callable[[Plan], Model]
) -> Plan:
    """The plan with which the network as a whole is the fastest, and not slower than it was.

    The first plan is kept unless another one is told to be faster by more than ``NOISE``. Layers
    that gain on their own may not gain together, in small networks above all: as long as the whole
    may be slower than the original by more than that, for all that was measured, the half of the
    splits that saves less is given up. Where the target's runtime cannot run the model here, the
    first plan stays as it is.

    ``carried_out`` converts the model as a plan says.
    """
    kept = plans[0]
    tried = [plan for plan in plans[1:] if _splits(plan) != _splits(kept)]
    nothing = not any(plan.choices for plan in (kept, *tried))
    if nothing or why_not(original) or not _runs_here(original, timer):
        return kept
    threads = timer.target.threads
    for plan in tried:
        ratio = slowdown(carried_out(kept), carried_out(plan), threads)
        if _faster(ratio):
            kept = _noted(plan, ratio)
    while kept.choices:
        ratio = slowdown(original, carried_out(kept), threads)
        if ratio.high <= NOISE:
            break
        kept = _better_half(kept, timer, ratio)
    return kept


def _faster(ratio: Interval) -> bool:
    return ratio.high < 1 and ratio.median < 1 / NOISE


def _splits(plan: Plan) -> set[Choice]:
    return {replace(choice, note="") for choice in plan.choices}


def _noted(plan: Plan, ratio: Interval) -> Plan:
    note = f"measured: the network as a whole takes {ratio.median:.2f} x the time with it"
    return replace(plan, choices=tuple(replace(choice, note=note) for choice in plan.choices))


def _runs_here(model: Model, timer: Timer) -> bool:
    """Whether the model's own runtime, on the CPU, is what will run it."""
    own = (timer.target.runtime == ONNXRUNTIME) == (model.engine == ONNXRUNTIME)
    return own and timer.target.device == "cpu"


def _better_half(plan: Plan, timer: Timer, ratio: Interval) -> Plan:
    def saved(choice: Choice) -> float:
        return timer.saved.get(replace(choice, note=""), 0.0)

    ranked = sorted(plan.choices, key=saved, reverse=True)
    kept = {choice.layer for choice in ranked[: len(ranked) // 2]}
    times = f"{ratio.median:.2f} x the original's time ({ratio.low:.2f} to {ratio.high:.2f})"
    why = f"measured: with it the network as a whole takes {times}"
    gone = (Skipped(c.layer, why) for c in plan.choices if c.layer not in kept)
    choices = tuple(choice for choice in plan.choices if choice.layer in kept)
    return replace(plan, choices=choices, skipped=(*plan.skipped, *gone))


def _opener(models: Mapping[str, Model], threads: int) -> Callable[[str], Opened]:
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

    return opened
