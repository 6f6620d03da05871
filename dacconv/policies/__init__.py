"""The ways to choose ranks. A new one is one file and one line here."""

from __future__ import annotations

from dacconv.policies.base import Policy, RankOptions, Spectra, Times
from dacconv.policies.budget import BUDGETS, budget, ranks_worth
from dacconv.policies.energy import energy
from dacconv.policies.latency import latency
from dacconv.policies.per_layer import per_layer
from dacconv.policies.select import Selection, select
from dacconv.policies.uniform import uniform

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
