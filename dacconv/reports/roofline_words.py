"""The roofline as text: memory traffic, and the layers with the most of it."""

from __future__ import annotations

from dacconv.conversion.report import Report, Row
from dacconv.graph.roofline import Roofline
from dacconv.reports import words as formatting

GUIDELINES = {
    "widths": ("G1 equal widths", "the bytes of 1x1 convs"),
    "groups": ("G2 few groups", "the bytes of grouped convs"),
    "fragmentation": ("G3 few operators", "as many operators as layers"),
    "elementwise": ("G4 little element-wise work", "the bytes of the convs alone"),
}
"""The name of each guideline of ShuffleNet v2, and the unit of its ratio."""
_BREAKS, _WORST = 1.05, 3
"""A layer above this ratio breaks a guideline; the number of such layers that are named."""


def lines(report: Report) -> list[str]:
    """At most eight lines; none where no size is known."""
    after = _is_after(report)
    roof = report.roof_after if after else report.roof_before
    if roof.intensity is None:
        return []
    texts = _gains(report)
    before = report.roof_before.intensity
    texts.append(
        f"MACs per byte that the convs move: {_change(before, roof.intensity, 1)}; "
        f"fewest: {_fewest(report, after)}"
    )
    texts.append("ShuffleNet v2's guidelines (arXiv 1807.11164), as multiples of the least:")
    for name, (title, of) in GUIDELINES.items():
        was, now = report.roof_before.guidelines[name], roof.guidelines[name]
        if now is not None:
            ratio = f"{_change(was, now, 2)} x {of}"
            texts.append(f"  {title}: {ratio}{_breaking(report, name, after)}")
    return [*texts, *_kinds(report)]


def _kinds(report: Report) -> list[str]:
    """The share of the MACs in each kind of layer, as in table 2 of arXiv 1704.04861."""
    macs: dict[str, int] = {}
    for row in report.rows:
        kind = _kind(row)
        macs[kind] = macs.get(kind, 0) + (row.before.macs or 0)
    whole = sum(macs.values())
    shares = sorted(((count / whole, kind) for kind, count in macs.items() if whole), reverse=True)
    texts = (f"{formatting.share(part)} in {kind}" for part, kind in shares)
    return [f"MACs of the original by kind of layer: {', '.join(texts)}"] if shares else []


def _kind(row: Row) -> str:
    g = row.geometry
    if g is None or not g.kernel:
        return "linear layers"
    if 1 < g.groups == g.in_channels:
        return "depthwise convs"
    if g.groups > 1:
        return "grouped convs"
    return "1x1 convs" if set(g.kernel) == {1} else "other convs"


def rows(report: Report) -> list[tuple[str, ...]]:
    """A header and a row per layer: MACs per byte and the four ratios, before and after."""
    after = _is_after(report)
    table: list[tuple[str, ...]] = [("layer", "MACs per byte", "G1", "G2", "G3", "G4")]
    for row in report.rows:
        was, roof = row.roof_before, _side(row, after)
        if roof.operators and roof.intensity is not None:
            pairs = [(was.guidelines[name], roof.guidelines[name]) for name in GUIDELINES]
            cells = ("-" if now is None else _change(old, now, 2) for old, now in pairs)
            table.append((row.name, _change(was.intensity, roof.intensity, 1), *cells))
    return table


def _is_after(report: Report) -> bool:
    return report.plan is not None or bool(report.fused)


def _gains(report: Report) -> list[str]:
    """The MACs and the time that are saved over the whole network."""
    if report.plan is None or report.verification is None:
        return []
    time = report.verification.latency
    macs = formatting.saved(report.before.macs, report.after.macs)
    saved = formatting.saved(time.original_ms, time.converted_ms)
    return [f"saved over the whole network: {macs} of the MACs, {saved} of the time"]


def _change(was: float | None, now: float, digits: int) -> str:
    after = f"{now:.{digits}f}"
    before = after if was is None else f"{was:.{digits}f}"
    return after if before == after else f"{before} > {after}"


def _fewest(report: Report, after: bool) -> str:
    """The layers with the fewest MACs per byte, of those with a known intensity."""
    values = [(v, row.name) for row in report.rows if (v := _side(row, after).intensity)]
    return ", ".join(f"{name} {value:.1f}" for value, name in sorted(values)[:_WORST])


def _breaking(report: Report, guideline: str, after: bool) -> str:
    """``; 19 of 50 layers, worst a 1.80, b 1.70``, or ``""`` where no layer breaks it."""
    ratios = [(_side(row, after).guidelines[guideline] or 0.0, row.name) for row in report.rows]
    breaking = [entry for entry in ratios if entry[0] > _BREAKS]
    if not breaking:
        return ""
    worst = sorted(breaking, key=lambda entry: -entry[0])[:_WORST]
    names = ", ".join(f"{name} {value:.2f}" for value, name in worst)
    return f"; {len(breaking)} of {len(report.rows)} layers, worst {names}"


def _side(row: Row, after: bool) -> Roofline:
    return row.roof_after if after else row.roof_before
