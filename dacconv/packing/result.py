"""What packing or rounding a model did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dacconv.graph.findings import Verification
from dacconv.packing.choice import RoundedRow


@dataclass(frozen=True, slots=True)
class PackResult:
    """What was packed or rounded: the bytes of the model's files before and after.

    ``rows`` say what happened to each weight, ``missed`` which gates were missed; then nothing was
    written. ``unverified`` is the reason why the model was not run.
    """

    written: tuple[Path, ...]
    before: int
    after: int
    rows: tuple[RoundedRow, ...] = ()
    notes: tuple[str, ...] = ()
    verification: Verification | None = None
    unverified: str = ""
    missed: tuple[str, ...] = ()
