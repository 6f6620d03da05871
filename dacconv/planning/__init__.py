"""The ways to choose ranks. A new one is one file and one line here."""

from __future__ import annotations

from dacconv.planning.base import Policy, RankOptions, Spectra, Times
from dacconv.planning.budget import BUDGETS, budget, ranks_worth
from dacconv.planning.energy import energy
from dacconv.planning.latency import latency
from dacconv.planning.per_layer import per_layer
from dacconv.planning.select import Selection, select
from dacconv.planning.uniform import uniform

POLICIES: dict[str, Policy] = {
    "rank": uniform,
    "ranks": per_layer,
    "energy": energy,
    **dict.fromkeys(BUDGETS, budget),
    "latency": latency,
}

__all__ = [
    "BUDGETS",
    "POLICIES",
    "Policy",
    "RankOptions",
    "Selection",
    "Spectra",
    "Times",
    "ranks_worth",
    "select",
]
