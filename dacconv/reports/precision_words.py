"""The precision of a report in sentences."""

from __future__ import annotations

from dacconv.conversion.report import Report
from dacconv.graph.findings import PrecisionCheck
from dacconv.reports.numbers import bytes_text, error, listed, saved


def precision_lines(report: Report) -> list[str]:
    """How the precision was lowered and what that alone does, and the sizes of the files."""
    lines = []
    done = report.precision
    if done is not None:
        lowered = [entry for entry in done.layers if entry.precision == done.precision]
        lines.append(f"{len(lowered)} of {len(done.layers)} layers in {done.precision}{_how(done)}")
        reasons: dict[str, list[str]] = {}
        for entry in done.layers:
            if entry.reason:
                reasons.setdefault(entry.reason, []).append(entry.layer)
        lines += [f"left in fp32: {listed(names)}: {reason}" for reason, names in reasons.items()]
        if done.damage is not None:
            lines += _damage(done)
        lines += done.notes
    if report.file_bytes:
        before, after = report.file_bytes
        lines.append(
            f"file: {bytes_text(before)} > {bytes_text(after)}, {saved(before, after)} saved"
        )
    return lines


def _how(done: PrecisionCheck) -> str:
    """The settings of int8 in words."""
    if not done.activations:
        return ""
    words = [f"activations {done.activations} within {done.ranges} ranges",
             f"weights of {7 if done.reduce_range else 8} bits per channel"]  # fmt: skip
    if done.reduce_range:
        words.append("7 bits since this processor's 8-bit products saturate (no VNNI, no AMX)")
    if done.correct_bias:
        words.append("biases corrected")
    return ": " + ", ".join(words)


def _damage(done: PrecisionCheck) -> list[str]:
    """The damage of the precision alone, and of the settings that were tried."""
    second = f", second family {error(done.second_damage)}" if done.second_damage else ""
    whole = f", without the runtime's optimiser {error(done.unoptimised_damage)}"
    lines = [
        f"squared relative output error of {done.precision} alone: held out {error(done.damage)}"
        f"{second}{whole if done.unoptimised_damage is not None else ''}",
        f"ranges measured on {done.inputs}",
    ]
    if done.tried:
        lines.append(f"tried: {'; '.join(f'{what} {error(e)}' for what, e in done.tried)}")
    return lines
