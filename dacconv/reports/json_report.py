"""The report as JSON; the schema is documented in ``docs/report.md``."""

from __future__ import annotations

import json
from dataclasses import asdict

from dacconv.conversion.report import SCHEMA_VERSION, Report
from dacconv.graph.findings import Verification


def render(report: Report) -> str:
    """The report as indented JSON text; without NaN or Infinity, which JSON does not have."""
    return json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def render_verification(check: Verification) -> str:
    """A verification on its own, as ``check`` makes it."""
    data = {"schema_version": SCHEMA_VERSION, "verification": asdict(check)}
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
