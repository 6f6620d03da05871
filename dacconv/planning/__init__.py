"""The ways to choose ranks. A new one is one file and one line here."""

from __future__ import annotations

from dacconv.planning.base import Damage, Evidence, Policy, RankOptions, Spectra, Times
from dacconv.planning.budget import BUDGETS, budget, splits_worth
from dacconv.planning.energy import energy
from dacconv.planning.ranks import per_layer, uniform
from dacconv.planning.select import Selection, select
from dacconv.planning.vbmf import vbmf

POLICIES: dict[str, Policy] = {
    "rank": uniform,
    "ranks": per_layer,
    "energy": energy,
    "vbmf": vbmf,
    **dict.fromkeys((*BUDGETS, "latency"), budget),
}

__all__ = [
    "BUDGETS",
    "POLICIES",
    "Damage",
    "Evidence",
    "Policy",
    "RankOptions",
    "Selection",
    "Spectra",
    "Times",
    "select",
    "splits_worth",
]
