"""A benchmark as one HTML file that needs no network."""

from __future__ import annotations

from dacconv.reports import benchmark_words as benchmark_text
from dacconv.reports import pages
from dacconv.reports.benchmark_words import milliseconds, ratio, spread
from dacconv.reports.pages import Bullets, Fact, Page, Picture, Pictures, Section
from dacconv.timing.benchmark.result import Benchmark, Timing


def render(result: Benchmark) -> str:
    """The benchmark as an HTML file."""
    return pages.render(page(result))


def page(result: Benchmark) -> Page:
    """The benchmark as a page: the times, their ratios, and confidence intervals."""
    from dacconv.reports.plots import svg
    from dacconv.reports.plots.bench import draw

    picture = Picture(svg(draw(result)), "Time of a run with its confidence interval.")
    first, *others = result.cases[0].timings
    sections = [Section("Times", (Pictures((picture,)),))]
    sections += [
        Section(title[:1].upper() + title[1:], (pages.from_text(rows),))
        for title, rows, _ in benchmark_text.tables(result)
    ]
    sections.append(Section("Facts", (Bullets(tuple(benchmark_text.facts(result))),)))
    before = Fact(f"{milliseconds(first.ms.median)} ms", first.model)
    return Page(
        title=" and ".join(model.name for model in result.models),
        subtitle=f"{benchmark_text.case_title(result.cases[0])}, {result.machine.processor}",
        facts=(before, *(_fact(timing) for timing in others)),
        sections=tuple(sections),
        alarms=result.notes,
    )


def _fact(timing: Timing) -> Fact:
    interval = timing.ratio
    note = f"{milliseconds(timing.ms.median)} ms"
    if interval is None:
        return Fact(note, timing.model)
    note = f"{timing.model}, {note}; 95 % interval {spread(interval)}"
    if interval.low > 1:
        return Fact(ratio(interval.median), "as fast", note, "good")
    if interval.high < 1:
        return Fact(ratio(1 / interval.median), "slower", note, "bad")
    return Fact("no difference", "that is significant", note)
