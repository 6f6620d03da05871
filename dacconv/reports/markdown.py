"""The report as Markdown, for a pull request or a CI step summary."""

from __future__ import annotations

from collections.abc import Sequence

from dacconv.conversion.report import CONVENTION, Report
from dacconv.reports import roofline_words as roofline_text
from dacconv.reports import words as formatting


def render(report: Report) -> str:
    """The report as GitHub-flavoured Markdown."""
    origin = report.provenance
    title = f"# dacconv: {origin.source}" if origin else "# dacconv"
    parts = [title, _headline(report)]
    if report.missed:
        parts.append("\n>\n".join(f"> **Gate missed:** {_escape(line)}" for line in report.missed))
    parts += [_table(report), _bullets(formatting.facts(report))]
    if times := formatting.time_table(report):
        parts += ["## Time", "```text\n" + "\n".join(times) + "\n```"]
    if lines := roofline_text.lines(report):
        parts += ["## Roofline", _bullets(lines), _roofline(report)]
    if report.verification:
        parts += ["## Verification", _bullets(formatting.verification(report.verification))]
    elif report.unverified:
        parts += ["## Verification", f"Not verified: {report.unverified}."]
    if origin:
        options = ", ".join(f"{key} = {value}" for key, value in origin.options.items())
        parts += [
            "## Provenance",
            _bullets(
                [
                    f"dacconv {origin.version}",
                    f"SHA-256 of {origin.source}: `{origin.sha256}`",
                    f"options: {options or 'none'}",
                ]
            ),
        ]
    parts.append(f"_{CONVENTION}._")
    return "\n\n".join(parts) + "\n"


def _headline(report: Report) -> str:
    before, after = report.before, report.after
    words = [
        f"**{formatting.saved(before.macs, after.macs)} of the MACs** and "
        f"**{formatting.saved(before.params, after.params)} of the parameters** saved"
    ]
    if report.verification:
        words.append(f"relative error {formatting.error(report.verification.relative_error)}")
    return ", ".join(words) + "."


def _table(report: Report) -> str:
    left, right = formatting.TEXT_COLUMNS, len(formatting.COLUMNS) - formatting.TEXT_COLUMNS
    lines = [
        _line(formatting.COLUMNS),
        _line([*["---"] * left, *["---:"] * right]),
        *(_line(formatting.row_cells(row)) for row in report.rows),
        *(
            _line([f"**{cell}**" if cell else "" for cell in cells])
            for cells in formatting.summary_rows(report)
        ),
    ]
    return "\n".join(lines)


def _roofline(report: Report) -> str:
    header, *rows = roofline_text.rows(report)
    return "\n".join([
        _line(header),
        _line(["---", *["---:"] * (len(header) - 1)]),
        *map(_line, rows),
    ])  # fmt: skip


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_escape(cell) for cell in cells) + " |"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_escape(line)}" for line in lines)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
