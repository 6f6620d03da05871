"""Plans as JSON; ``planning.plans`` reads them back."""

from __future__ import annotations

import json
from typing import Any

from dacconv.graph.types import Plan

PLAN_VERSION = 1
AUTO = "auto"


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-ready data; :func:`plan_from_dict` reads it back."""
    return {
        "plan_version": PLAN_VERSION,
        "layers": [
            {"name": c.layer, "method": c.method, "rank": c.rank}
            | ({"form": c.form} if c.form != AUTO else {})
            | ({"note": c.note} if c.note else {})
            for c in plan.choices
        ],
        "skipped": [{"name": s.layer, "reason": s.reason} for s in plan.skipped],
    }


def plan_to_json(plan: Plan) -> str:
    """The plan as indented JSON text, ending in a newline."""
    return json.dumps(plan_to_dict(plan), indent=2, ensure_ascii=False) + "\n"
