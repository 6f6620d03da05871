"""The lines that every report opens with: the verdict, the speed, and what to try next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dacconv.conversion.report import Report
from dacconv.conversion.verdict import Verdict, speed_change, verdict_on
from dacconv.graph.findings import Latency, Verification
from dacconv.planning.plans import ANY_METHOD

KEPT = ("input_shape", "arch", "arch_arg", "key", "trust_pickle", "input_mean", "input_std",
        "input_range", "input_layout", "input_order", "data", "precision")  # fmt: skip
"""Options about the model and its inputs, which the next command needs as well."""
STEP = 0.1
"""How much more or less of the MACs the next budget keeps."""


@dataclass(frozen=True, slots=True)
class Opening:
    """The verdict, and the lines: verdict, speed, next command. Empty for a plain inspection."""

    verdict: Verdict
    lines: tuple[str, ...]


def opening(report: Report) -> Opening:
    """What a report on a conversion opens with; it has a plan."""
    verdict = verdict_on(report.verification, report.unverified)
    if report.plan is None:
        return Opening(verdict, ())
    lines = [verdict_line(verdict), *speed_lines(report), *_search_lines(report)]
    if step := next_step(report, verdict):
        lines.append(f"next: {step}")
    return Opening(verdict, tuple(lines))


def verification_opening(check: Verification) -> Opening:
    """What a verification on its own opens with."""
    verdict = verdict_on(check)
    return Opening(verdict, (verdict_line(verdict), f"speed: {speed(check.latency)}"))


def verdict_line(verdict: Verdict) -> str:
    """``verdict: usable: 92.2 % of 64 drawn images keep their top class``."""
    return f"verdict: {verdict.level}: {verdict.reason}"


def speed_lines(report: Report) -> Iterator[str]:
    """The speed, and the budgets that were missed."""
    time = report.verification.latency if report.verification is not None else None
    yield f"speed: {'not measured' if time is None else speed(time)}"
    options = _options(report)
    for name, noun in (("macs", "MACs"), ("params", "parameters")):
        share = _share(options.get(name))
        before, after = getattr(report.before, name), getattr(report.after, name)
        if share is not None and before and after is not None and after > share * before:
            yield _missed(f"budget of {noun}", after / before, share)
    share = _share(options.get("latency"))
    if share is not None and time is not None:
        _, high = time.interval or (time.low, time.high)
        if 1 / high > share:  # even at the fast end of the interval
            yield _missed("budget of time", 1 / time.speedup, share)


def _search_lines(report: Report) -> Iterator[str]:
    """The command that does the same as a search did, or that no saving was good enough."""
    if report.search is None:
        return
    if report.converted:
        yield f"this is: {command_line(report)}"
    else:
        yield f"no saving gives {report.search.goal}; only what costs nothing was merged"


def command_line(report: Report) -> str:
    """The command that gives this conversion, with every option that is not at its default."""
    origin = report.provenance
    if origin is None:
        return ""
    words = ["dacconv", "convert", report.path or origin.source]
    for name, value in origin.options.items():
        words += typed(name, value)
    return " ".join(shlex.quote(word) if not word.startswith("--") else word for word in words)


def _missed(budget: str, left: float, share: float) -> str:
    return f"MISSED: the {budget}: {100 * left:.1f} % is left, not {100 * share:.1f} %"


def speed(time: Latency) -> str:
    """``1.31 x as fast (1.22 to 1.40)``, or that no difference can be measured."""
    low, high = time.interval or (time.low, time.high)
    change = speed_change(time)
    if change is None:
        return f"no measurable difference ({time.speedup:.2f} x as fast, {low:.2f} to {high:.2f})"
    if change > 1:
        return f"{change:.2f} x as fast as the original ({low:.2f} to {high:.2f})"
    return (
        f"SLOWER than the original: {1 / change:.2f} x the time ({1 / high:.2f} to {1 / low:.2f})"
    )


def next_step(report: Report, verdict: Verdict) -> str:
    """The command that somebody who knows the program would try next."""
    origin = report.provenance
    if origin is None:
        return ""
    options = _options(report)
    if not report.converted and not report.fused and verdict.level == "unknown":
        return ""
    saving = report.saving()
    if saving is None:
        return "name the network with --arch, or its sizes with --input-shape, to verify it"
    change = _change(report, verdict, options, 1 - saving)
    if not change:
        return ""
    words = ["dacconv", "convert", report.path or origin.source, *_opening_words(options), *change]
    return " ".join(shlex.quote(word) if not word.startswith("--") else word for word in words)


def _change(
    report: Report, verdict: Verdict, options: Mapping[str, Any], left: float
) -> tuple[str, ...]:
    """The options that choose layers, ranks and forms in the next command."""
    budget = next((n for n in ("macs", "params", "latency") if options.get(n) is not None), None)
    share = _share(options[budget]) if budget else None
    if report.precision and not report.converted and verdict.level in ("broken", "degraded"):
        return ("--calibrate", "FOLDER")
    if not report.converted:
        return ("--macs", "0.5")
    if verdict.level in ("broken", "degraded"):
        if budget is None or share is None:  # a budget puts the ranks where they are worth most
            return ("--macs", _text(left if verdict.level == "degraded" else max(left, 0.5)))
        restricted = options.get("method", ANY_METHOD) != ANY_METHOD
        if restricted or options.get("calibrate") == "none":  # the same budget with the defaults
            return (f"--{budget}", _text(share))
        return (f"--{budget}", _text(share + STEP))
    change = speed_change(report.verification.latency) if report.verification else None
    if not options.get("tune") and report.verification and (change is None or change < 1):
        return ("--macs", _text(share if budget == "macs" and share else left), "--tune")
    return ("--macs", _text(left - STEP))


def _opening_words(options: Mapping[str, Any]) -> Iterator[str]:
    for name in KEPT:
        yield from typed(name, options.get(name))


def typed(name: str, value: Any) -> list[str]:
    """An option as it is typed; nothing for None."""
    dashed = name.replace("_", "-")
    option = f"--{dashed}"
    if value is None:
        return []
    if isinstance(value, bool):
        return [option if value else f"--no-{dashed}"]
    if isinstance(value, Mapping):
        return [option, ",".join(f"{key}={rank}" for key, rank in value.items())]
    values = value if isinstance(value, (list, tuple)) else (value,)
    return [word for each in values for word in (option, str(each))]


def _options(report: Report) -> Mapping[str, Any]:
    return report.provenance.options if report.provenance else {}


def _share(value: Any) -> float | None:
    """A share as it was typed: ``0.5`` or ``50%``."""
    from dacconv.support.parsing import parse_share

    return None if value is None else parse_share(value, "budget")


def _text(share: float) -> str:
    return f"{min(max(share, 0.1), 0.95):.2f}".rstrip("0")
