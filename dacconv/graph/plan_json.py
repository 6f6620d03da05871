"""Plans as JSON; ``planning.plans`` reads them back."""

from __future__ import annotations

import json
from typing import Any

from dacconv.graph.precision import precision_to_dict
from dacconv.graph.types import Plan, Rank
from dacconv.safe_text import visible_lines

PLAN_VERSION = 2
"""Version 1 had one whole number as the rank of every layer; it is read as well."""
AUTO = "auto"


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-ready data; :func:`plan_from_dict` reads it back."""
    return {
        "plan_version": PLAN_VERSION,
        "layers": [
            {"name": c.layer, "method": c.method, "rank": rank_to_json(c.rank)}
            | ({"form": c.form} if c.form != AUTO else {})
            | ({"note": c.note} if c.note else {})
            for c in plan.choices
        ],
        "skipped": [{"name": s.layer, "reason": s.reason} for s in plan.skipped],
    } | ({"precision": precision_to_dict(plan.precision)} if plan.precision else {})


def plan_to_json(plan: Plan) -> str:
    """The plan as indented JSON text, ending in a newline."""
    return visible_lines(json.dumps(plan_to_dict(plan), indent=2, ensure_ascii=False)) + "\n"


def rank_to_json(rank: Rank) -> int | list[int]:
    """One number for a method of one rank, else a list."""
    return rank[0] if len(rank) == 1 else list(rank)


def rank_text(rank: Rank) -> str:
    """A rank as people read it: ``2``, or ``4, 3`` for a method of two ranks."""
    return ", ".join(map(str, rank))
