"""The time of the whole network beside those of its layers: what a budget of time is about."""

from __future__ import annotations

import statistics
import time

import numpy as np

from dacconv.errors import UsageError
from dacconv.forms import AUTO
from dacconv.models.base import Model
from dacconv.policies import Times
from dacconv.tuning.timer import Timer
from dacconv.types import Layer
from dacconv.verification import make_inputs, why_not

_ROUNDS = 9
_NANO = 1e9


def layer_times(model: Model, timer: Timer, form: str) -> Times:
    """What the network takes, and its layers at every rank in their fastest form.

    Raises:
        UsageError: the model cannot be run.
    """
    if reason := why_not(model):
        raise UsageError(f"the model cannot be timed: {reason}", where="--latency")

    def of(layer: Layer, rank: int | None) -> int | None:
        whole = timer.original(layer)
        if whole is None or rank is None:
            return None if whole is None else round(whole * _NANO)
        forms = model.forms(layer.geometry, own_layers=False) if form == AUTO else (form,)
        ratios = timer(layer, rank, forms)
        return round(min(ratios.values()) * whole * _NANO) if ratios else None

    return Times(whole=round(whole_seconds(model, timer.target.threads) * _NANO), of=of)


def whole_seconds(model: Model, threads: int) -> float:
    """The median time of a run of the model on a seeded input."""
    run = model.runner(threads=threads)
    feeds = make_inputs(model.inputs(), np.random.default_rng(0))
    run(feeds)
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        run(feeds)
        times.append(time.perf_counter() - started)
    return statistics.median(times)
