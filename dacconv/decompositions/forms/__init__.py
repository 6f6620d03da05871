"""The forms in which DAC's depthwise conv is written: the same function, at different speeds."""

from __future__ import annotations

from collections.abc import Collection

from dacconv.decompositions.forms import concat, multiplier, repeat
from dacconv.decompositions.forms import sum as summed
from dacconv.decompositions.forms.base import Form, Reordering
from dacconv.graph.types import Branches, Construct, Conv

MULTIPLIER = "multiplier"
AUTO = "auto"
FORMS: dict[str, tuple[Form, ...]] = {
    MULTIPLIER: (multiplier.FORM,),
    "sum": (summed.FORM,),
    "repeat": (repeat.FORM, repeat.INTERLEAVED),
    "concat": (concat.FORM,),
}
"""A new form is one file and one entry here; of several variants the first possible is taken."""
EVERYTHING: frozenset[Construct] = frozenset({"sum", "parallel", "repeat"})
"""The constructs of a format that is a graph of operators."""


def lower(
    branches: Branches,
    form: str,
    reorder: Reordering,
    constructs: Collection[Construct] = EVERYTHING,
) -> Branches:
    """The branches in that form, of the variant that ``constructs`` allow.

    Branches other than one depthwise conv of multiplier r with the conv after it are returned as
    they are, and so are those of the form ``auto``.
    """
    rank = multiplier_of(branches)
    if rank < 2 or form == AUTO:
        return branches
    ((depthwise, pointwise),) = branches
    assert isinstance(depthwise, Conv) and isinstance(pointwise, Conv)  # noqa: PT018
    variant = next(v for v in FORMS[form] if v.needs is None or v.needs in constructs)
    return variant.lower(depthwise, pointwise, rank, reorder)


def possible(constructs: Collection[Construct]) -> tuple[str, ...]:
    """The names of the forms that a format with these constructs can write."""
    return tuple(
        name
        for name, variants in FORMS.items()
        if any(v.needs is None or v.needs in constructs for v in variants)
    )


def multiplier_of(branches: Branches) -> int:
    """The multiplier r of a chain of a depthwise and a pointwise conv; 1 for anything else."""
    if len(branches) != 1 or len(branches[0]) != 2:
        return 1
    depthwise, pointwise = branches[0]
    if not isinstance(depthwise, Conv) or not isinstance(pointwise, Conv):
        return 1
    plain = not depthwise.transposed and pointwise.groups == 1 and set(pointwise.kernel) == {1}
    if not plain or depthwise.groups != depthwise.in_channels:
        return 1
    return depthwise.out_channels // depthwise.groups


__all__ = [
    "AUTO",
    "EVERYTHING",
    "FORMS",
    "MULTIPLIER",
    "Form",
    "Reordering",
    "lower",
    "multiplier_of",
    "possible",
]
