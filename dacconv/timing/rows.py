"""Measured times as rows of the report."""

from __future__ import annotations

from collections.abc import Sequence

from dacconv.decompositions import METHODS
from dacconv.decompositions.costs import cost_share
from dacconv.decompositions.forms import AUTO, MULTIPLIER, possible
from dacconv.formats.base import Model
from dacconv.graph.findings import LayerTime, RankTime, Timings
from dacconv.graph.types import Layer, Plan
from dacconv.planning import splits_worth
from dacconv.timing.cache import where
from dacconv.timing.timer import Timer

_MS = 1e3


def plan_times(plan: Plan, layers: Sequence[Layer], timer: Timer) -> Timings:
    """The times before and after of a plan's layers, and of those that were timed and not split."""
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


def rank_times(model: Model, layers: Sequence[Layer], timer: Timer, form: str = AUTO) -> Timings:
    """The times of every layer that can be split, at every rank that saves MACs."""
    method = METHODS["dac"]
    rows = []
    for index, layer in enumerate(layers):
        if layer.skip is not None:
            continue
        timer.progress("timing layers", index, len(layers))
        before = timer.original(layer)
        if before is None:
            continue
        ranks = []
        constructs = model.constructs(len(layer.geometry.kernel), own_layers=False)
        for choice in splits_worth(layer, method):
            forms = [form] if form != AUTO else possible(constructs)
            ratios = timer(layer, choice, forms if choice.rank > (1,) else [MULTIPLIER])
            best = min(ratios, key=lambda name: ratios[name])
            share = cost_share(layer.geometry, method.name, choice.rank)
            ranks.append(RankTime(choice.rank, best, ratios[best], share))
        rows.append(LayerTime(layer.name, before * _MS, before * _MS, tuple(ranks)))
    return Timings(where(timer.target), tuple(rows))
