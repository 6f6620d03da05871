"""The forms in which a split layer is written: the same function, at different speeds."""

from __future__ import annotations

from collections.abc import Sequence

from dacconv.decompositions.forms import concat, multiplier, repeat
from dacconv.decompositions.forms import sum as summed
from dacconv.decompositions.forms.base import Branches, Form, Spelled
from dacconv.graph.types import Conv

MULTIPLIER = "multiplier"
AUTO = "auto"
FORMS: dict[str, Form] = {f.FORM.name: f.FORM for f in (multiplier, summed, repeat, concat)}
"""A new form is one file and one entry here."""


def lowered(branches: Branches, form: str, spelled: Spelled) -> Branches:
    """The branches in that form.

    What is no depthwise conv of multiplier r stays as it is, and so does ``auto``.
    """
    rank = multiplier_of(branches)
    if rank < 2 or form == AUTO:
        return branches
    ((depthwise, pointwise),) = branches
    return FORMS[form].lower(depthwise, pointwise, rank, spelled)


def multiplier_of(branches: Sequence[Sequence[Conv]]) -> int:
    """The multiplier r of a chain of a depthwise and a pointwise conv; 1 for anything else."""
    if len(branches) != 1 or len(branches[0]) != 2:
        return 1
    depthwise, pointwise = branches[0]
    plain = depthwise.copies == 1 and not depthwise.transposed and pointwise.groups == 1
    if not plain or depthwise.groups != depthwise.in_channels or set(pointwise.kernel) > {1}:
        return 1
    return depthwise.out_channels // depthwise.groups


pieces = concat.pieces
interleaved = repeat.interleaved

__all__ = [
    "AUTO",
    "FORMS",
    "MULTIPLIER",
    "Branches",
    "Form",
    "Spelled",
    "interleaved",
    "lowered",
    "multiplier_of",
    "pieces",
]
