"""Gates: what a conversion must keep or save, for scripts and CI."""

from __future__ import annotations

from dataclasses import dataclass

from dacconv.conversion.noise import error_beyond_noise
from dacconv.conversion.report import Report
from dacconv.conversion.verdict import verdict_on
from dacconv.graph.findings import Verification


@dataclass(frozen=True, slots=True)
class Gates:
    """Limits on a report; None is no limit. Shares are between 0 and 1.

    An output whose error is within the runtime's own noise keeps any ``max_error``.
    """

    max_error: float | None = None
    min_saving: float | None = None
    min_agreement: float | None = None

    @property
    def need_verification(self) -> bool:
        """Whether a gate looks at the outputs."""
        return self.max_error is not None or self.min_agreement is not None


def missed(report: Report, gates: Gates) -> list[str]:
    """The gates that the report misses, a sentence each. What is unknown counts as missed.

    A converted network that is broken misses a gate, whatever the limits.
    """
    sentences: list[str] = []
    verdict = verdict_on(report.verification)
    if verdict.level == "broken":
        sentences.append(f"the converted network is broken: {verdict.reason}")
    saving = report.saving()
    if gates.min_saving is not None and (saving is None or saving < gates.min_saving):
        have = "unknown (give --input-shape)" if saving is None else f"{saving:.1%}"
        sentences.append(f"MACs saved: {have}, at least {gates.min_saving:.1%} required")
    check = report.verification
    error = error_beyond_noise(check.relative_error, check.outputs) if check else None
    if gates.max_error is not None and (error is None or error > gates.max_error):
        have = f"unknown{_unknown(check)}" if error is None else f"{error:.3g}{_noise(check)}"
        sentences.append(f"relative error: {have}, at most {gates.max_error:g} required")
    same = check.agreement if check else None
    if gates.min_agreement is not None and (same is None or same < gates.min_agreement):
        reason = _unknown(check) or " (no output looks like class scores)"
        have = f"unknown{reason}" if same is None else f"{same:.1%}"
        sentences.append(f"same top class: {have}, at least {gates.min_agreement:.1%} required")
    return sentences


def _unknown(check: Verification | None) -> str:
    """The reason why an error or an agreement is not known, where it is the values."""
    if check is None:
        return ""
    if any(output.varies for output in check.outputs):
        return " (the shape of the original's outputs depends on rounding)"
    if not check.not_finite:
        return ""
    return " (the original's outputs are NaN or infinite on the inputs that were tried)"


def _noise(check: Verification | None) -> str:
    """The error of the original against itself, for comparison."""
    if check is None or check.noise is None:
        return ""
    return f" (that of the original against itself, by rounding alone: {check.noise:.2g})"
