"""The report as Markdown, for a pull request or a CI step summary."""

from __future__ import annotations

from collections.abc import Sequence

from dacconv.conversion.report import CONVENTION, Report
from dacconv.reports import roofline_words as roofline_text
from dacconv.reports import search_words, what_if_words
from dacconv.reports import words as formatting
from dacconv.reports.opening import opening
from dacconv.safe_text import markdown_text


def render(report: Report) -> str:
    """The report as GitHub-flavoured Markdown."""
    origin = report.provenance
    title = f"# dacconv: {markdown_text(origin.source)}" if origin else "# dacconv"
    lines = opening(report).lines
    parts = [title, *([_bullets(lines)] if lines else []), _headline(report)]
    if report.missed:
        parts.append(
            "\n>\n".join(f"> **Gate missed:** {markdown_text(line)}" for line in report.missed)
        )
    parts += [_table(report), _bullets(formatting.facts(report))]
    if report.timings and (times := formatting.time_rows(report)):
        where = f"Timed layer by layer on {markdown_text(report.timings.where)}."
        parts += ["## Time", where, _pipes(times)]
    if report.what_if is not None:
        question = what_if_words.title(report.what_if)
        parts += [
            f"## {question[0].upper()}{question[1:]}",
            _bullets(what_if_words.summary(report.what_if)),
            _pipes(what_if_words.rows(report.what_if)),
        ]
    if roofline := roofline_text.lines(report):
        parts += ["## Roofline", _bullets(roofline), _pipes(roofline_text.rows(report))]
    if report.verification:
        parts += ["## Verification", _bullets(formatting.verification(report.verification))]
    elif report.unverified:
        parts += ["## Verification", f"Not verified: {markdown_text(report.unverified)}."]
    if report.search:
        parts += ["## Search", search_words.summary(report.search) + "."]
        parts.append(_pipes([tuple(row) for row in search_words.rows(report.search)]))
    if origin:
        options = ", ".join(f"{key} = {value}" for key, value in origin.options.items())
        parts += [
            "## Provenance",
            "\n".join(
                [
                    f"- dacconv {origin.version}",
                    f"- SHA-256 of {markdown_text(origin.source)}: `{origin.sha256}`",
                    f"- options: {markdown_text(options or 'none')}",
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
    columns = formatting.columns(report)
    left, right = formatting.TEXT_COLUMNS, len(columns) - formatting.TEXT_COLUMNS
    lines = [
        _line(columns),
        "| " + " | ".join([*["---"] * left, *["---:"] * right]) + " |",
        *map(_line, formatting.cells(report)),
        *(_line(cells, bold=True) for cells in formatting.summary_rows(report)),
    ]
    return "\n".join(lines)


def _pipes(lines: Sequence[tuple[str, ...]]) -> str:
    """A header and rows as a table, the first column text."""
    header, *rows = lines
    return "\n".join([
        _line(header),
        "| " + " | ".join(["---", *["---:"] * (len(header) - 1)]) + " |",
        *map(_line, rows),
    ])  # fmt: skip


def _line(cells: Sequence[str], *, bold: bool = False) -> str:
    texts = [f"**{text}**" if bold and text else text for text in map(markdown_text, cells)]
    return "| " + " | ".join(texts) + " |"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {markdown_text(line)}" for line in lines)
