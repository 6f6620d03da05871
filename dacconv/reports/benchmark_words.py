"""A benchmark as text: tables for the terminal and Markdown, and JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from dacconv.reports import words as formatting
from dacconv.safe_text import json_text, markdown_text
from dacconv.timing.benchmark.result import Benchmark, Case, LayerTime, LayerTimes, Timing
from dacconv.timing.intervals import Interval

NOTHING = "-"
Table = tuple[str, list[tuple[str, ...]], list[bool]]
"""A title, a header with rows, and for each row whether it is emphasised."""


def as_json(result: Benchmark) -> str:
    """The result as indented JSON; ``docs/bench.md`` documents the schema."""
    return json_text(result.to_dict())


def markdown(result: Benchmark) -> str:
    """The result as GitHub-flavoured Markdown."""
    parts = ["# dacconv bench"]
    for title, rows, marked in tables(result):
        parts += [f"## {markdown_text(title)}", _pipes(rows, marked)]
    lines = [*map(markdown_text, facts(result))]
    lines += [f"**{markdown_text(note)}**" for note in result.notes]
    parts.append("\n".join(f"- {line}" for line in lines))
    return "\n\n".join(parts) + "\n"


def tables(result: Benchmark) -> Iterator[Table]:
    """One table for each case, and one of the layers if they were timed."""
    for case in result.cases:
        rows: list[tuple[str, ...]] = [
            ("model", "ms", "quartiles", "faster", "95 % interval", "memory", "running", "file")
        ]
        sizes = {model.name: model.size for model in result.models}
        rows += [_timing_cells(timing, sizes[timing.model]) for timing in case.timings]
        faster = [timing.ratio is not None and timing.ratio.low > 1 for timing in case.timings]
        yield case_title(case), rows, faster
    if result.layers is not None:
        yield _layer_table(result, result.layers)


def facts(result: Benchmark) -> list[str]:
    """Facts besides the tables, a sentence each."""
    lines = []
    for case in result.cases:
        lines += [_verdict(result, case, timing) for timing in case.timings[1:]]
    rounds = sorted({case.rounds for case in result.cases})
    count = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    fresh = {case.fresh for case in result.cases}
    often = ("", " in every round of some cases", " in every round")[any(fresh) + all(fresh)]
    lines.append(
        f"median of {count} alternating rounds, a process for each model{often}; "
        "faster: the first model's time over this one's; memory: peak above the runtime's own, "
        "loading included"
    )
    machine = result.machine
    memory = "" if machine.memory_gib is None else f", {machine.memory_gib:g} GiB"
    cores = f"{machine.cores} core{'s' if machine.cores != 1 else ''}"
    runtimes = dict.fromkeys(model.runtime for model in result.models)
    lines.append(
        f"{machine.processor}, {cores}{memory}, {machine.system}; {', '.join(runtimes)}"
        + _torch(result)
    )
    return lines


def milliseconds(value: float | None) -> str:
    """Three digits: ``12.3``; a dash for None."""
    if value is None:
        return NOTHING
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}" if value >= 1 else f"{value:.3f}"


def ratio(value: float) -> str:
    """``1.85 x``; more digits where it is small."""
    return f"{value:.2f} x" if value >= 0.1 else f"{value:.2g} x"


def spread(interval: Interval) -> str:
    """``1.80 - 1.91``, with its confidence where that is less than 95 %."""
    text = f"{interval.low:.2f} - {interval.high:.2f}"
    return text if interval.confidence >= 0.95 else f"{text} ({interval.confidence:.0%})"


def _verdict(result: Benchmark, case: Case, timing: Timing) -> str:
    """A sentence on whether a model is significantly faster or slower than the first."""
    interval = timing.ratio
    if interval is None:
        return ""
    where = f" ({case_title(case)})" if len(result.cases) > 1 else ""
    if interval.low > 1:
        comparison = f"{ratio(interval.median)} as fast as"
    elif interval.high < 1:
        comparison = f"{ratio(1 / interval.median)} slower than"
    else:
        comparison = "neither faster nor slower (no significant difference) than"
    return f"{timing.model}: {comparison} {case.timings[0].model}{where}"


def case_title(case: Case) -> str:
    """``batch 8, 2 threads``."""
    threads = {None: "threads by default", 1: "1 thread"}.get(case.threads)
    return f"batch {case.batch}, {threads or f'{case.threads} threads'}"


def _timing_cells(timing: Timing, size: int) -> tuple[str, ...]:
    memory = timing.memory
    running = memory.device
    if running is None and memory.running is not None and memory.runtime is not None:
        running = memory.running - memory.runtime
    return (
        timing.model,
        milliseconds(timing.ms.median),
        f"{milliseconds(timing.first_quartile)} - {milliseconds(timing.third_quartile)}",
        NOTHING if timing.ratio is None else ratio(timing.ratio.median),
        NOTHING if timing.ratio is None else spread(timing.ratio),
        _bytes(memory.above_runtime),
        _bytes(running),
        _bytes(size),
    )


def _layer_table(result: Benchmark, table: LayerTimes) -> Table:
    names = [model.name for model in result.models]
    others = len(names) - 1
    ratios = ["faster"] if others == 1 else [f"faster {i}" for i in range(1, others + 1)]
    rows: list[tuple[str, ...]] = [("ms per run", *names, *ratios)]
    rows += [_layer_cells(row) for row in table.rows]
    total = LayerTime("total, profiled", True, table.total)
    rows.append(_layer_cells(total))
    timings = result.cases[0].timings
    rows.append(
        _layer_cells(LayerTime("not profiled", True, tuple(one.ms.median for one in timings)))
    )
    title = f"by layer, batch {table.batch}" + (
        "" if table.threads is None else f", {table.threads} thread{'s' * (table.threads > 1)}"
    )
    marked = [
        row.layer and row.ms[0] is not None and any(ms is not None and ms < row.ms[0]
                                                    for ms in row.ms[1:])
        for row in table.rows
    ]  # fmt: skip
    return title, rows, [*marked, False, False]


def _layer_cells(row: LayerTime) -> tuple[str, ...]:
    first = row.ms[0]
    ratios = [ratio(first / ms) if first is not None and ms else NOTHING for ms in row.ms[1:]]
    return (row.name, *map(milliseconds, row.ms), *ratios)


def _torch(result: Benchmark) -> str:
    parts = [
        "" if result.device == "cpu" else f"on {result.device}",
        result.dtype or "",
        "channels last" if result.channels_last else "",
    ]
    text = ", ".join(part for part in parts if part)
    return f"; {text}" if text else ""


def _bytes(value: int | None) -> str:
    return formatting.UNKNOWN if value is None else f"{value / 2**20:.1f} MiB"


def _pipes(rows: Sequence[Sequence[str]], marked: Sequence[bool]) -> str:
    lines: list[Iterable[str]] = [
        map(markdown_text, rows[0]),
        ["---", *["---:"] * (len(rows[0]) - 1)],
    ]
    for cells, mark in zip(rows[1:], marked, strict=True):
        texts = map(markdown_text, cells)
        lines.append([f"**{text}**" for text in texts] if mark else texts)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


EXPORTERS: dict[str, Callable[[Benchmark], str]] = {"json": as_json, "markdown": markdown}
