"""The report as one HTML file, which needs no network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dacconv.conversion.report import CONVENTION, Report
from dacconv.conversion.report import Row as LayerRow
from dacconv.graph.cost import Cost
from dacconv.graph.findings import Search, Verification
from dacconv.graph.plan_json import plan_to_json, rank_text
from dacconv.graph.types import Provenance
from dacconv.reports import pages, search_words
from dacconv.reports import roofline_words as roofline_text
from dacconv.reports import words as formatting
from dacconv.reports.opening import opening, verification_opening
from dacconv.reports.pages import (
    Block,
    Bullets,
    Cell,
    Code,
    Column,
    Fact,
    Group,
    Groups,
    Kind,
    Page,
    Picture,
    Pictures,
    Row,
    Section,
    Strip,
    Table,
    Terms,
    Tile,
    Tone,
)
from dacconv.reports.plots import report_figures, svg
from dacconv.support.numbers import three_digits

KIND_TEXTS: Mapping[Kind, str] = {
    "split": "split",
    "merged": "others are merged into it, without loss",
    "gone": "is merged into another, without loss",
    "left": "could be split, but is not",
    "fixed": "cannot be split",
}


def render(report: Report) -> str:
    """The report as an HTML file."""
    return pages.render(page(report))


def render_verification(check: Verification, title: str, missed: Sequence[str]) -> str:
    """A verification without a conversion: the report of the command ``check``."""
    verification = Page(
        title=title,
        subtitle="side by side on the same inputs",
        facts=agreement(check),
        sections=(Section("Verification", (verified(check), outputs(check))),),
        alarms=alarms(missed),
        opening=verification_opening(check).lines,
    )
    return pages.render(verification)


def page(report: Report) -> Page:
    """The report as a page: savings, errors and reasons, layer by layer."""
    origin = report.provenance
    sections = [
        Section("Layers", (_strip(report), _table(report))),
        Section("Costs and losses", (_pictures(report),)),
        *_timed(report),
        *_refusals(report),
        *_fits(report),
        Section("Facts", (Bullets(tuple(formatting.facts(report, by_layer=False))),)),
    ]
    if lines := roofline_text.lines(report):
        sections.append(Section("Roofline", (Bullets(tuple(map(_arrows, lines))),)))
    if report.search:
        sections.append(Section("Search", _searched(report.search)))
    if report.verification:
        sections.append(Section("Verification", (verified(report.verification),)))
    if report.plan and (report.plan.choices or report.plan.precision):
        blocks = (Code("The plan, for --plan", plan_to_json(report.plan)),)
        sections.append(Section("Plan", blocks))
    if origin:
        sections.append(Section("Provenance", (provenance(origin),)))
    return Page(
        title=origin.source if origin else f"{report.format} model",
        subtitle=_subtitle(report),
        facts=(*_savings(report), *_precision(report), *_accuracy(report)),
        sections=tuple(sections),
        alarms=alarms(report.missed),
        opening=opening(report).lines,
        footer=CONVENTION,
    )


def agreement(check: Verification) -> tuple[Fact, ...]:
    """Headline facts of a verification: the agreement of the outputs, and the speed."""
    same = check.agreement
    error = formatting.error(check.relative_error)
    inputs = f"{check.samples} {check.kind}"
    facts = [Fact(error, "relative error of the outputs", inputs)]
    if same is not None:
        facts = [Fact(formatting.share(same), "keep their top class", f"{inputs}, error {error}")]
    time = check.latency
    tone: Tone = "good" if time.low > 1 else "bad" if time.high < 1 else ""
    ratio = time.speedup if time.speedup >= 1 else 1 / time.speedup
    before, after = map(three_digits, (time.original_ms, time.converted_ms))
    facts.append(
        Fact(
            f"{ratio:.2f} x",
            "as fast" if time.speedup >= 1 else "slower",
            f"{before} ms → {after} ms, batch {time.batch}",
            tone,
        )
    )
    return tuple(facts)


def alarms(missed: Sequence[str]) -> tuple[str, ...]:
    """The warnings at the top of the page: a line for each missed gate."""
    return tuple(f"Gate missed: {line}" for line in missed)


def outputs(check: Verification) -> Table:
    """The difference of every output."""
    names = ("output", "shape", "type", "relative error", "largest difference", "same top class")
    return Table(
        tuple(Column(name, index > 2) for index, name in enumerate(names)),
        tuple(
            Row(
                (
                    Cell(output.name),
                    Cell(formatting.axes(output.shape)),
                    Cell(output.dtype),
                    Cell(formatting.error(output.relative_error), output.relative_error),
                    Cell(formatting.error(output.max_abs_error), output.max_abs_error),
                    Cell(formatting.share(output.agreement), output.agreement),
                ),
                note="" if output.matches else "shape or type differs",
            )
            for output in check.outputs
        ),
    )


def verified(check: Verification) -> Bullets:
    """A verification in sentences."""
    return Bullets(tuple(map(_arrows, formatting.verification(check))))


def provenance(origin: Provenance) -> Terms:
    """The origin of a converted model."""
    options = ", ".join(f"{key} = {value}" for key, value in origin.options.items())
    return Terms(
        (
            ("converted by", f"dacconv {origin.version}"),
            ("original", origin.source),
            ("its SHA-256", origin.sha256),
            ("options", options or "none"),
        )
    )


def _subtitle(report: Report) -> str:
    return f"{report.format}, {len(report.rows)} layers"


def _savings(report: Report) -> tuple[Fact, ...]:
    before, after = report.before, report.after
    pairs = (("MACs", before.macs, after.macs), ("parameters", before.params, after.params))
    if report.plan is None:
        eligible = sum(row.eligible for row in report.rows)
        return (
            *(Fact(formatting.number(value), name) for name, value, _ in pairs),
            Fact(f"{eligible} of {len(report.rows)}", "layers can be split"),
        )
    return tuple(
        Fact(
            formatting.saved(was, now),
            f"of the {name} saved",
            _arrows(formatting.change(was, now)),
            "unknown" if was is None else "good" if was > (now or 0) else "",
        )
        for name, was, now in pairs
    )


def _precision(report: Report) -> tuple[Fact, ...]:
    """The precision of the layers and the size of the file, where the precision was lowered."""
    done, sizes = report.precision, report.file_bytes
    if done is None:
        return ()
    lowered = sum(entry.precision == done.precision for entry in done.layers)
    facts = [Fact(f"{lowered} of {len(done.layers)}", f"layers in {done.precision}")]
    if sizes is not None:
        change = f"{formatting.bytes_text(sizes[0])} → {formatting.bytes_text(sizes[1])}"
        tone: Tone = "good" if sizes[1] < sizes[0] else ""
        facts.append(Fact(formatting.saved(*sizes), "of the file saved", change, tone))
    return tuple(facts)


def _accuracy(report: Report) -> tuple[Fact, ...]:
    if report.verification:
        return agreement(report.verification)
    if report.plan is None:
        return ()
    reason = report.unverified or "this is a plan, nothing was converted"
    return (Fact("not verified", "the accuracy is not known", reason, "unknown"),)


def _strip(report: Report) -> Strip:
    kinds = _kinds(report)
    tiles = tuple(
        Tile(_tile_text(n, row, kind), kind, _share_left(row), f"layer-{n}")
        for n, (row, kind) in enumerate(zip(report.rows, kinds, strict=True), 1)
    )
    note = "Filled: the share of a layer's MACs that is left." if report.plan else ""
    words = _words(report)
    return Strip(tiles, {kind: words[kind] for kind in words if kind in kinds}, note)


def _words(report: Report) -> Mapping[Kind, str]:
    return KIND_TEXTS if report.plan else {**KIND_TEXTS, "left": "can be split"}


def _kinds(report: Report) -> list[Kind]:
    # not shown beside splits: nearly every layer has a folded BatchNorm
    merged = set() if report.converted else {entry.name for entry in report.fused}
    kinds: list[Kind] = []
    for row in report.rows:
        if row.rank is not None:
            kinds.append("split")
        elif row.merged_into is not None:
            kinds.append("gone")
        elif row.name in merged:
            kinds.append("merged")
        else:
            kinds.append("left" if row.eligible else "fixed")
    return kinds


def _tile_text(number: int, row: LayerRow, kind: Kind) -> str:
    """The text of a layer's tile: its tooltip, also for screen readers."""
    change = (
        KIND_TEXTS[kind]
        if row.rank is None
        else f"rank {rank_text(row.rank or ())} of {rank_text(row.full_rank or ())}"
    )
    costs = formatting.change(row.before.macs, row.after.macs)
    error = f", kernel error {formatting.error(row.kernel_error)}" if row.kernel_error else ""
    reason = f": {row.reason}" if row.reason else ""
    return f"{number}. {row.name}: {change}{error}, {_arrows(costs)} MACs{reason}"


def _share_left(row: LayerRow) -> float:
    was, now = row.before, row.after
    pair = (was.params, now.params) if was.macs is None else (was.macs, now.macs)
    return min(1.0, (pair[1] or 0) / pair[0]) if pair[0] else 1.0


def _searched(search: Search) -> tuple[Block, ...]:
    """The budgets that were tried."""
    header, *rows = search_words.rows(search)
    columns = tuple(Column(name, index > 1) for index, name in enumerate(header))
    cells = tuple(Row(tuple(map(Cell, row))) for row in rows)
    return Bullets((search_words.summary(search),)), Table(columns, cells)


def _table(report: Report) -> Table:
    words = _words(report)
    rows = tuple(
        Row(
            tuple(
                Cell(_arrows(text), key)
                for text, key in zip(texts, (*_keys(n, row), None), strict=False)
            ),
            kind,
            row.reason or words[kind],
            f"layer-{n}",
            str(n),
        )
        for n, (row, kind, texts) in enumerate(
            zip(report.rows, _kinds(report), formatting.cells(report), strict=True), 1
        )
    )
    return Table(
        tuple(
            Column(name, index >= formatting.TEXT_COLUMNS)
            for index, name in enumerate(formatting.columns(report))
        ),
        rows,
        tuple(tuple(map(_arrows, cells)) for cells in formatting.summary_rows(report)),
    )


def _keys(number: int, row: LayerRow) -> tuple[float | None, ...]:
    """The sort key of each cell under ``formatting.COLUMNS``; None where it is not known."""
    g = row.geometry
    sizes: tuple[float | None, ...] = (None,) * 6
    if g is not None:
        sizes = (
            math.prod(g.kernel),
            g.in_channels,
            g.out_channels,
            math.prod(g.stride) if g.known else None,
            math.prod(g.dilation) if g.known else None,
            None if g.output_size is None else math.prod(g.output_size),
        )
    costs = (_sorted_by(row.before), _sorted_by(row.after))
    rank = None if row.rank is None else row.rank[0]
    return (number, *sizes, rank, row.kernel_error, row.energy_kept, *costs[0])


def _sorted_by(cost: Cost) -> tuple[float | None, ...]:
    return cost.macs, cost.params, cost.traffic


def _pictures(report: Report) -> Pictures:
    counted = "MACs" if report.before.macs is not None else "Parameters"
    captions = {
        "costs": f"{counted} of every layer, before and after.",
        "losses": "The error of the split, relative to the kernel or the output.",
    }
    figures = report_figures(report)
    return Pictures(tuple(Picture(svg(drawn), captions[name]) for name, drawn in figures.items()))


def _fits(report: Report) -> list[Section]:
    """The errors of the layers' outputs, if the model was calibrated."""
    fitted = [(row.name, row.fit) for row in report.rows if row.fit is not None]
    names = ("layer", "plain split", "converted", "on the inputs of the fit", "factors")
    rows = tuple(
        Row(
            (
                Cell(name, number),
                *(Cell(formatting.error(e), e) for e in (fit.plain, fit.held, fit.predicted)),
                Cell(fit.what),
            )
        )
        for number, (name, fit) in enumerate(fitted)
    )
    columns = tuple(Column(name, 0 < index < 4) for index, name in enumerate(names))
    title = "Squared relative error of each layer's output"
    return [Section(title, (Table(columns, rows),))] if rows else []


def _timed(report: Report) -> list[Section]:
    """The measured times of the layers, if there are any."""
    rows = formatting.time_rows(report)
    if report.timings is None or not rows:
        return []
    where = Bullets((f"Layer by layer on {report.timings.where}.",))
    arrows = [tuple(map(_arrows, row)) for row in rows]
    return [Section("Measured times", (where, pages.from_text(arrows)))]


def _refusals(report: Report) -> list[Section]:
    """The layers that are not split, and the nodes that cannot be merged, by reason."""
    sections: list[Section] = []
    for title, refusals in (("Not split", report.refusals), ("Not merged", report.unmerged)):
        groups: tuple[Block, ...] = (
            Groups(
                tuple(
                    Group(reason, tuple(names))
                    for reason, names in formatting.left_alone(refusals).items()
                )
            ),
        )
        if refusals:
            sections.append(Section(title, groups))
    return sections


def _arrows(text: str) -> str:
    return text.replace(" > ", " → ")
