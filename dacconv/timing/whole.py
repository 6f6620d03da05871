"""The time of a whole network, and the times of its layers, for budgets of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from dacconv.decompositions import METHODS, Method, refusal
from dacconv.decompositions.forms import AUTO, MULTIPLIER, possible
from dacconv.errors import UsageError
from dacconv.formats.base import Model
from dacconv.formats.inputs import make_inputs, reason_not_runnable
from dacconv.graph.types import Choice, Layer, Plan, Skipped
from dacconv.planning import Times
from dacconv.planning.base import Price, first_method, same_rank
from dacconv.timing.intervals import Interval
from dacconv.timing.speeds import ONNXRUNTIME
from dacconv.timing.timer import OpenRunner, Timer, ratios_to_first, side_by_side

_NANO = 1e9
NOISE = 1.02
"""Times that differ by less than this factor count as equal."""


def layer_times(
    model: Model,
    layers: Sequence[Layer],
    methods: Sequence[Method],
    timer: Timer,
    form: str,
    convert: Callable[[Plan], Model],
) -> Times:
    """The time of the network, and those of its layers at every rank in their fastest form.

    ``methods`` are those that may split layers; ``convert`` converts the model as a plan says.

    Raises:
        UsageError: the model cannot be run.
    """
    if reason := reason_not_runnable(model):
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

    smallest = [
        Choice(layer.name, method.name, same_rank(method, 1))
        for layer in layers
        if refusal(layer, methods) is None
        for method in [first_method(layer, methods)]
    ]
    return Times(whole=_whole(model, layers, smallest, timer, of, convert), of=of)


def forms_of(model: Model, layer: Layer, choice: Choice, form: str) -> Sequence[str]:
    """The forms to time a split in: ``form``, or all that the format can hold for ``auto``."""
    forms = METHODS[choice.method].forms
    if not forms:
        return (AUTO,)
    if choice.rank == (1,):  # all forms are the same
        return (MULTIPLIER,)
    if form != AUTO:
        return (form,)
    return possible(model.constructs(len(layer.geometry.kernel), own_layers=False))


def _whole(
    model: Model,
    layers: Sequence[Layer],
    smallest: Sequence[Choice],
    timer: Timer,
    of: Price,
    convert: Callable[[Plan], Model],
) -> int:
    """The time of the network on the scale of its layers' times, in nanoseconds.

    The times of layers that are measured one by one do not add up to the time of the network. So
    the network is split at rank 1 (``smallest``) where that saves time, and timed against the
    original. The sum of the times that the layers save on their own stands for the share of the
    time that the network saves.
    """
    by_name = {layer.name: layer for layer in layers}
    choices, saved = [], 0
    for choice in smallest:
        layer = by_name[choice.layer]
        before, after = of(layer, None), of(layer, choice)
        if before is not None and after is not None and after < before:
            choices.append(choice)
            saved += before - after
    if choices and _runs_here(model, timer):
        split = convert(Plan(tuple(choices)))
        ratio = slowdown(model, split, timer.target.threads)
        if ratio.median < 1 / NOISE:
            return round(saved / (1 - ratio.median))
    return round(whole_seconds(model, timer.target.threads) * _NANO)


def whole_seconds(model: Model, threads: int) -> float:
    """The seconds of a run of the model on a seeded input."""
    return side_by_side(["model"], _opener({"model": model}, threads))["model"]


def slowdown(original: Model, converted: Model, threads: int) -> Interval:
    """The time of a run of the converted model over that of the original."""
    models = {"original": original, "converted": converted}
    return ratios_to_first(list(models), _opener(models, threads))["converted"]


def fastest(
    original: Model, plans: Sequence[Plan], timer: Timer, convert: Callable[[Plan], Model]
) -> Plan:
    """The plan with which the network as a whole is the fastest, and not slower than the original.

    The first plan is returned unless another one is faster by more than ``NOISE``. Layers that are
    faster on their own may be slower together, especially in small networks. So while the interval
    of the ratio to the original reaches above ``NOISE``, the half of the splits that saves less is
    removed. Where the target's runtime cannot run the model here, the first plan is returned.

    ``convert`` converts the model as a plan says.
    """
    best = plans[0]
    others = [plan for plan in plans[1:] if _splits(plan) != _splits(best)]
    is_empty = not any(plan.choices for plan in (best, *others))
    if is_empty or reason_not_runnable(original) or not _runs_here(original, timer):
        return best
    threads = timer.target.threads
    for plan in others:
        ratio = slowdown(convert(best), convert(plan), threads)
        if _is_faster(ratio):
            best = _with_note(plan, ratio)
    while best.choices:
        ratio = slowdown(original, convert(best), threads)
        if ratio.high <= NOISE:
            break
        best = _better_half(best, timer, ratio)
    return best


def _is_faster(ratio: Interval) -> bool:
    return ratio.high < 1 and ratio.median < 1 / NOISE


def _splits(plan: Plan) -> set[Choice]:
    return {replace(choice, note="") for choice in plan.choices}


def _with_note(plan: Plan, ratio: Interval) -> Plan:
    note = f"measured: the network as a whole takes {ratio.median:.2f} x the time with it"
    return replace(plan, choices=tuple(replace(choice, note=note) for choice in plan.choices))


def _runs_here(model: Model, timer: Timer) -> bool:
    """Whether the target is the model's own runtime on the CPU."""
    own = (timer.target.runtime == ONNXRUNTIME) == (model.engine == ONNXRUNTIME)
    return own and timer.target.device == "cpu"


def _better_half(plan: Plan, timer: Timer, ratio: Interval) -> Plan:
    def saved(choice: Choice) -> float:
        return timer.saved.get(replace(choice, note=""), 0.0)

    ranked = sorted(plan.choices, key=saved, reverse=True)
    better = {choice.layer for choice in ranked[: len(ranked) // 2]}
    times = f"{ratio.median:.2f} x the original's time ({ratio.low:.2f} to {ratio.high:.2f})"
    reason = f"measured: with it the network as a whole takes {times}"
    skipped = (Skipped(c.layer, reason) for c in plan.choices if c.layer not in better)
    choices = tuple(choice for choice in plan.choices if choice.layer in better)
    return replace(plan, choices=choices, skipped=(*plan.skipped, *skipped))


def _opener(models: Mapping[str, Model], threads: int) -> Callable[[str], OpenRunner]:
    """A function that opens a model by its name, in its runtime.

    The model is closed at the end, because several open sessions slow each other down.
    """

    @contextmanager
    def opened(name: str) -> Iterator[Callable[[], None]]:
        runners = [models[name].runner(threads=threads)]
        feeds = make_inputs(models[name].inputs(), np.random.default_rng(0))

        def run() -> None:
            runners[0](feeds)

        try:
            yield run
        finally:
            runners.clear()

    return opened
