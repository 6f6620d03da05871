"""A sweep as one HTML file that needs no network."""

from __future__ import annotations

from dacconv.graph.plan_json import plan_to_json
from dacconv.reports import pages
from dacconv.reports import sweep_words as sweep_text
from dacconv.reports import words as formatting
from dacconv.reports.pages import Bullets, Code, Fact, Page, Picture, Pictures, Section, Terms
from dacconv.sweeps.fronts import knee
from dacconv.sweeps.results import SHARES, Sweep

CAPTIONS = {
    "single": "One layer split at a time, at every rank.",
    "first-last": "The first or the last k layers split.",
    "heatmap": "Layer by rank.",
    "pareto": "Quality against cost; beyond the knee, more cost gains little quality.",
    "pareto-time": "Quality against measured time.",
    "spectra": "The singular values of every layer: how much each further rank adds.",
}
ON_WHITE = ("heatmap",)
"""Pictures whose colours are data: they stay on white on a dark page."""


def render(sweep: Sweep, results: str) -> str:
    """The sweep as an HTML file; ``results`` is the name of the results file."""
    return pages.render(page(sweep, results))


def page(sweep: Sweep, results: str) -> Page:
    """The sweep as a page: advice, figures and tables."""
    from dacconv.reports.plots import svg
    from dacconv.reports.plots.sweep import sweep_figures

    pictures = tuple(
        Picture(svg(figure), CAPTIONS[name], themed=name not in ON_WHITE)
        for name, figure in sweep_figures(sweep).items()
    )
    sections = [
        Section("Advice", (Bullets(tuple(sweep_text.advice(sweep, results))), *_plan(sweep))),
        Section("Pictures", (Pictures(pictures),)),
    ]
    sections += [
        Section(
            table.title[:1].upper() + table.title[1:],
            (pages.from_text([table.columns, *table.rows]),),
        )
        for table in sweep_text.tables(sweep)
    ]
    terms = tuple((name.replace("_", " "), str(value)) for name, value in sweep.header.items())
    sections.append(Section("Provenance", (Terms(terms),)))
    return Page(
        title=f"Sweep of {sweep.header.get('source')}",
        subtitle=str(sweep.header.get("inputs")),
        facts=_facts(sweep),
        sections=tuple(sections),
    )


def _facts(sweep: Sweep) -> tuple[Fact, ...]:
    quality = sweep.quality
    facts = [Fact(str(len(sweep.points)), "points", f"{len(sweep.layers)} layers")]
    bend = knee(sweep.rows, sweep.macs_share, quality)
    if bend is not None:
        share = sweep.macs_share(bend)
        value = quality.value(bend)
        text = formatting.share(value) if quality.name in SHARES else formatting.error(value)
        facts.append(Fact(formatting.share(share), "of the MACs left at the knee", bend.label))
        facts.append(Fact(text, f"{quality.title} at the knee"))
    return tuple(facts)


def _plan(sweep: Sweep) -> tuple[Code, ...]:
    bend = knee(sweep.rows, sweep.macs_share, sweep.quality)
    if bend is None or not bend.choices:
        return ()
    return (Code("The plan of the knee, for --plan", plan_to_json(bend.plan)),)
