"""Measured times as rows of the report."""

from __future__ import annotations

from collections.abc import Sequence

from dacconv.decompositions import Method, refusal
from dacconv.decompositions.costs import cost_share
from dacconv.decompositions.forms import AUTO
from dacconv.formats.base import Model
from dacconv.graph.findings import LayerTime, RankTime, Timings
from dacconv.graph.types import Layer, Plan
from dacconv.planning import splits_worth
from dacconv.timing.cache import where
from dacconv.timing.timer import Timer
from dacconv.timing.whole import forms_of

_MS = 1e3


def plan_times(plan: Plan, layers: Sequence[Layer], timer: Timer) -> Timings:
    """The times of the layers of a plan before and after, and of layers timed but not split."""
    choices = {choice.layer: choice for choice in plan.choices}
    rows = []
    for layer in layers:
        choice = choices.get(layer.name)
        ratio = 1.0
        if choice is not None:
            ratios = timer(layer, choice, [choice.form])
            ratio = ratios.get(choice.form, 1.0)
        seconds = timer.seconds.get(layer.name)
        if seconds is not None:
            sites = len(layer.sites)
            ms = sites * seconds * _MS
            rows.append(LayerTime(layer.name, ms, ms * ratio))
    return Timings(where(timer.target), tuple(rows))


def rank_times(
    model: Model,
    layers: Sequence[Layer],
    methods: Sequence[Method],
    timer: Timer,
    form: str = AUTO,
) -> Timings:
    """The times of every layer, split by each of the methods at every rank that saves MACs."""
    rows = []
    for index, layer in enumerate(layers):
        if refusal(layer, methods) is not None:
            continue
        timer.progress("timing layers", index, len(layers))
        before = timer.original(layer)
        if before is None:
            continue
        ranks = []
        for choice in (choice for method in methods for choice in splits_worth(layer, method)):
            ratios = timer(layer, choice, forms_of(model, layer, choice, form))
            best = min(ratios, key=lambda name: ratios[name])
            share = cost_share(layer.geometry, choice.method, choice.rank)
            ranks.append(RankTime(choice.method, choice.rank, best, ratios[best], share))
        rows.append(LayerTime(layer.name, before * _MS, before * _MS, tuple(ranks)))
    return Timings(where(timer.target), tuple(rows))
