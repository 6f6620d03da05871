"""The report as files. A new format is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable

from dacconv.exporters import html, json_report, markdown
from dacconv.report import Report

EXPORTERS: dict[str, Callable[[Report], str]] = {
    "json": json_report.render,
    "markdown": markdown.render,
    "html": html.render,
}
