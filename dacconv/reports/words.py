"""Numbers and tables as words: shared by the terminal and the Markdown report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from dacconv.conversion.report import Report, Row
from dacconv.decompositions.forms import AUTO
from dacconv.graph.cost import Cost
from dacconv.graph.findings import Calibration, RankTime, Timings, Verification
from dacconv.graph.plan_json import rank_text
from dacconv.graph.types import Refusal
from dacconv.reports.numbers import UNKNOWN as UNKNOWN
from dacconv.reports.numbers import axes as axes
from dacconv.reports.numbers import bytes_text as bytes_text
from dacconv.reports.numbers import change as change
from dacconv.reports.numbers import error as error
from dacconv.reports.numbers import listed
from dacconv.reports.numbers import number as number
from dacconv.reports.numbers import saved as saved
from dacconv.reports.numbers import share as share
from dacconv.reports.precision_words import precision_lines
from dacconv.safe_text import visible
from dacconv.support.numbers import three_digits

COLUMNS = (
    "layer",
    "kernel",
    "in",
    "out",
    "stride",
    "dil.",
    "output",
    "rank",
    "error",
    "energy",
    "MACs",
    "parameters",
    "bytes moved",
)
TEXT_COLUMNS = 1
"""How many columns, from the left, hold text; the others are numbers."""


PRECISION = "precision"
"""The last column, of reports in which a layer's precision is known."""


def columns(report: Report) -> tuple[str, ...]:
    """The columns of a report's table: ``COLUMNS``, and the precision where one is known."""
    return (*COLUMNS, PRECISION) if _has_precision(report) else COLUMNS


def cells(report: Report) -> list[tuple[str, ...]]:
    """The cells of every row under the columns of a report."""
    if not _has_precision(report):
        return [row_cells(row) for row in report.rows]
    return [(*row_cells(row), row.precision or "-") for row in report.rows]


def _has_precision(report: Report) -> bool:
    return any(row.precision is not None for row in report.rows)


def row_cells(row: Row) -> tuple[str, ...]:
    """The cells of one row under ``COLUMNS``."""
    return (
        row.name if row.sites == 1 else f"{row.name} (x{row.sites})",
        *_geometry_cells(row),
        split_cell(row),
        "-" if row.kernel_error is None else error(row.kernel_error),
        "-" if row.energy_kept is None else share(row.energy_kept),
        *_costs(row.before, row.after),
    )


def split_cell(row: Row) -> str:
    """The rank and the form, or the method where it has no forms; ``-`` for a layer left alone."""
    if row.rank is None:
        return "-"
    return f"{rank_text(row.rank)} {row.form or row.method or ''}".rstrip()


def _geometry_cells(row: Row) -> tuple[str, ...]:
    g = row.geometry
    if g is None:
        return (row.op, *[UNKNOWN] * 5)
    return (
        axes(g.kernel) or row.op,
        str(g.in_channels),
        str(g.out_channels),
        _same(g.stride) if g.known else UNKNOWN,
        _same(g.dilation) if g.known else UNKNOWN,
        UNKNOWN if g.output_size is None else axes(g.output_size) or "-",
    )


def total_cells(report: Report) -> tuple[str, ...]:
    """The cells of the totals under ``COLUMNS``."""
    return ("total", *[""] * 9, *_costs(report.before, report.after))


def saved_cells(report: Report) -> tuple[str, ...]:
    """The cells of the savings under ``COLUMNS``."""
    before, after = report.before, report.after
    return (
        "saved",
        *[""] * 9,
        saved(before.macs, after.macs),
        saved(before.params, after.params),
        saved(before.traffic, after.traffic),
    )


def summary_rows(report: Report) -> list[tuple[str, ...]]:
    """The totals and, where there is a plan, what it saves."""
    rows = [total_cells(report)]
    if report.plan is not None:
        rows.append(saved_cells(report))
    return [(*row, "") for row in rows] if _has_precision(report) else rows


def plain_table(report: Report) -> list[str]:
    """The table as lines of aligned text, however long."""
    return aligned([columns(report), *cells(report), *summary_rows(report)], TEXT_COLUMNS)


def aligned(rows: Sequence[Sequence[str]], text_columns: int) -> list[str]:
    """Rows as lines, the first columns flush left and the others flush right."""
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < text_columns else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


TIME_COLUMNS = ("layer", "rank", "ms", "time saved", "MACs saved")
RANK_COLUMNS = ("layer", "ms")
SPLIT_COLUMNS = (*RANK_COLUMNS, "split", "form", "time", "MACs")


def time_table(report: Report) -> list[str]:
    """Measured time and MACs, side by side, as aligned lines; none where nothing was timed."""
    rows = time_rows(report)
    if report.timings is None or not rows:
        return []
    lines = aligned(rows, 1)
    return [f"timed layer by layer on {report.timings.where}", *(f"  {line}" for line in lines)]


def time_rows(report: Report) -> list[tuple[str, ...]]:
    """Measured time and MACs, a row per layer under a header; none where nothing was timed."""
    if report.timings is None or not report.timings.layers:
        return []
    return _rank_rows(report.timings) if report.plan is None else _time_rows(report, report.timings)


def _time_rows(report: Report, timings: Timings) -> list[tuple[str, ...]]:
    rows = {row.name: row for row in report.rows}
    lines: list[tuple[str, ...]] = [TIME_COLUMNS]
    for timed in timings.layers:
        row = rows[timed.layer]
        lines.append((
            timed.layer,
            split_cell(row),
            change_ms(timed.before_ms, timed.after_ms),
            saved(timed.before_ms, timed.after_ms),
            saved(row.before.macs, row.after.macs),
        ))  # fmt: skip
    before, after = timings.before_ms, timings.after_ms
    macs = saved(report.before.macs, report.after.macs)
    lines.append(("total", "", change_ms(before, after), saved(before, after), macs))
    return lines


def _rank_rows(timings: Timings) -> list[tuple[str, ...]]:
    """The times of the ranks: ``-41 % sum`` is 41 % less time than the conv, as a sum."""
    if {split.method for layer in timings.layers for split in layer.ranks} - {"dac"}:
        return _split_rows(timings)
    ranks = sorted({found.rank for layer in timings.layers for found in layer.ranks})
    lines = [(*RANK_COLUMNS, *(f"rank {rank_text(rank)}" for rank in ranks))]
    for layer in timings.layers:
        known = {found.rank: found for found in layer.ranks}
        lines.append((
            layer.layer,
            f"{three_digits(layer.before_ms)}",
            *(_rank_cell(known.get(rank)) for rank in ranks),
        ))  # fmt: skip
    return lines


def _split_rows(timings: Timings) -> list[tuple[str, ...]]:
    """The times of splits by several methods, a row for each: their ranks differ by layer."""
    lines: list[tuple[str, ...]] = [SPLIT_COLUMNS]
    for layer in timings.layers:
        lines += [
            (
                layer.layer,
                f"{three_digits(layer.before_ms)}",
                f"{split.method} {rank_text(split.rank)}",
                "" if split.form == AUTO else split.form,
                f"{100 * (split.time - 1):+.0f} %",
                f"{100 * (split.macs - 1):+.0f} %",
            )
            for split in layer.ranks
        ]
    return lines


def _rank_cell(found: RankTime | None) -> str:
    return "" if found is None else f"{100 * (found.time - 1):+.0f} % {found.form}"


def change_ms(before: float, after: float) -> str:
    """``3.21 > 1.85`` milliseconds; one number where nothing changed."""
    was, now = f"{three_digits(before)}", f"{three_digits(after)}"
    return was if was == now else f"{was} > {now}"


def facts(report: Report, *, by_layer: bool = True) -> list[str]:
    """What a reader must know besides the table, a sentence each.

    Without ``by_layer``, what is to be said of single layers is told elsewhere.
    """
    eligible = sum(row.eligible for row in report.rows)
    lines = [
        f"{eligible} of {len(report.rows)} layers can be split"
        if report.plan is None
        else f"{len(report.converted)} of {len(report.rows)} layers split"
    ]
    if report.order != "execution":
        lines[0] += f"; layers in order of {report.order}"
    if report.before.macs is None:
        lines.append("MACs and bytes moved are unknown without the sizes: give --input-shape")
    if by_layer:
        lines += [
            f"left alone: {listed(names)}: {reason}"
            for reason, names in left_alone(report.refusals).items()
        ]
    if report.calibration:
        lines += _calibrated(report, report.calibration, by_layer=by_layer)
    lines += precision_lines(report)
    if report.fused:
        lines.append(f"merged without loss: {_merged(report)}")
    if report.unmerged and by_layer:
        lines += _unmerged(report)
    counted = [
        f"{entry.count} {entry.kind}"
        + (f" ({number(entry.params)} parameters)" if entry.params else "")
        for entry in report.uncounted
    ]
    if counted:
        lines.append(f"not counted: {', '.join(counted)}")
    return lines + list(report.notes)


def _calibrated(report: Report, done: Calibration, *, by_layer: bool) -> list[str]:
    """What the layers' outputs were reproduced on, and what came of it."""
    verdict = "taken" if done.taken else "not taken: the plain split stays"
    second = ""
    if done.second_plain_error is not None:
        second = f", second family {error(done.second_plain_error)} > {error(done.second_error)}"
    lines = [
        f"calibrated on {done.inputs}",
        *done.notes,
        "squared relative output error, plain > reconstructed: held out "
        f"{error(done.plain_error)} > {error(done.error)}{second}; {verdict}",
    ]
    fits = [(row.name, row.fit) for row in report.rows if row.fit is not None]
    if done.taken and fits and by_layer:
        lines.append(
            "output error of each layer, plain > reconstructed (on what it was fitted to):"
        )
        lines += [
            f"  {name}: {error(fit.plain)} > {error(fit.held)} ({error(fit.predicted)}), {fit.what}"
            for name, fit in fits
        ]
    return lines


def _merged(report: Report) -> str:
    """How often each kind of merge was done, the most frequent first."""
    kinds = Counter(entry.what for entry in report.fused)
    return "; ".join(
        what if count == 1 else f"{count} x ({what})" for what, count in kinds.most_common()
    )


def _unmerged(report: Report, most: int = 3) -> list[str]:
    """What could not be merged: all of it where merging was the job, else in short."""
    reasons = left_alone(report.unmerged)
    lines = [f"not merged: {listed(names)}: {reason}" for reason, names in reasons.items()]
    if report.plan and report.plan.choices and len(lines) > most:
        rest = sum(len(names) for names in list(reasons.values())[most:])
        lines = [*lines[:most], f"not merged: {rest} more, for reasons that --json lists"]
    return lines


def left_alone(refusals: Iterable[Refusal]) -> dict[str, list[str]]:
    """What was refused, by reason, in the order of the model."""
    reasons: dict[str, list[str]] = {}
    for refusal in refusals:
        reasons.setdefault(refusal.reason, []).append(refusal.node)
    return reasons


def verification(check: Verification) -> list[str]:
    """The verification in sentences."""
    lines = [
        f"{check.samples} {check.kind} ({'; '.join(check.inputs)})"
        f"{', ' if check.family else ''}{check.family} through {check.runtime}: "
        f"relative error {error(check.relative_error)}"
        + ("" if check.agreement is None else f", same top class {share(check.agreement)}")
        + (f", top-1 {share(check.top1[0])} > {share(check.top1[1])}" if check.top1 else "")
    ]
    if check.noise is not None:
        lines.append(
            "the original against itself, by rounding alone (inputs moved by 1e-7; unoptimised): "
            f"relative error {error(check.noise)}"
        )
    if check.not_finite:
        lines.append(
            f"not compared: the original's output {listed(list(check.not_finite))} is NaN or "
            "infinite on every kind of input that was tried: nothing is known of its error"
        )
    if len(check.outputs) > 1 or not all(output.matches for output in check.outputs):
        lines += [
            f"output {output.name} {axes(output.shape)} {output.dtype}: "
            + (
                f"relative error {error(output.relative_error)}"
                if output.matches
                else "shape or type differs"
            )
            for output in check.outputs
        ]
    time = check.latency
    lines += check.notes
    lines.append(
        f"latency {three_digits(time.original_ms)} ms > {three_digits(time.converted_ms)} ms: "
        f"{_speed(time.speedup)} (quartiles {time.low:.2f} to {time.high:.2f}, "
        f"{time.rounds} alternating rounds, batch {time.batch})"
    )
    return lines


def _speed(ratio: float) -> str:
    return f"{ratio:.2f} x as fast" if ratio >= 1 else f"{1 / ratio:.2f} x slower"


def _costs(before: Cost, after: Cost) -> tuple[str, ...]:
    return (
        change(before.macs, after.macs),
        change(before.params, after.params),
        change(before.traffic, after.traffic),
    )


def _same(values: tuple[int, ...]) -> str:
    return "-" if not values else str(values[0]) if len(set(values)) == 1 else axes(values)
