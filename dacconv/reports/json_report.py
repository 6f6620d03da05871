"""The report as JSON; the schema is documented in ``docs/report.md``."""

from __future__ import annotations

from dataclasses import asdict

from dacconv.conversion.report import SCHEMA_VERSION, Report
from dacconv.graph.findings import Verification
from dacconv.safe_text import json_text


def render(report: Report) -> str:
    """The report as indented JSON text, without NaN and Infinity, which are not JSON."""
    return json_text(report.to_dict())


def render_verification(check: Verification) -> str:
    """A verification without a conversion: the report of the command ``check``."""
    data = {"schema_version": SCHEMA_VERSION, "verification": asdict(check)}
    return json_text(data)
