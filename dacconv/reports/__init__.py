"""The report in several formats. A new format is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable

from dacconv.conversion.report import Report
from dacconv.reports import html, json_report, markdown

EXPORTERS: dict[str, Callable[[Report], str]] = {
    "json": json_report.render,
    "markdown": markdown.render,
    "html": html.render,
}
