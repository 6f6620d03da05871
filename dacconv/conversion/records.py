"""The rows of a report as flat records, and as the table that a notebook shows."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from dacconv.graph.plan_json import rank_to_json

if TYPE_CHECKING:
    from dacconv.conversion.report import Report, Row


def records(report: Report) -> list[dict[str, Any]]:
    """One flat dict for each layer: ``pandas.DataFrame(report.records())``."""
    return [_record(row) for row in report.rows]


def html_table(report: Report) -> str:
    """The verdict, the saving, and a row for each layer, as a fragment of HTML."""
    from dacconv.conversion.verdict import verdict_on

    check = report.verification
    lines = []
    if check is not None:
        verdict = verdict_on(check)
        lines.append(f"<b>{verdict.level}</b>: {escape(verdict.reason)}")
    saving = report.saving()
    if saving is not None:
        lines.append(f"{100 * saving:.1f} % of the MACs saved")
    names = ("name", "op", "kernel", "in_channels", "out_channels", "method", "rank",
             "kernel_error", "macs_before", "macs_after", "params_before",
             "params_after")  # fmt: skip
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(record[name])}</td>" for name in names) + "</tr>"
        for record in records(report)
    )
    text = "<br>".join(lines)
    return f"<p>{text}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _record(row: Row) -> dict[str, Any]:
    geometry = row.geometry
    return {
        "name": row.name,
        "op": row.op,
        "kernel": "x".join(map(str, geometry.kernel)) if geometry else None,
        "in_channels": geometry.in_channels if geometry else None,
        "out_channels": geometry.out_channels if geometry else None,
        "eligible": row.eligible,
        "reason": row.reason,
        "merged_into": row.merged_into,
        "method": row.method,
        "rank": None if row.rank is None else rank_to_json(row.rank),
        "form": row.form,
        "kernel_error": row.kernel_error,
        "energy_kept": row.energy_kept,
        "macs_before": row.before.macs,
        "macs_after": row.after.macs,
        "params_before": row.before.params,
        "params_after": row.after.params,
    }


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return escape("x".join(map(str, value)))
    return escape(str(value))
