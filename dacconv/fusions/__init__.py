"""Lossless re-parameterisation: what can be merged into one conv, is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self, TypeVar

from dacconv.fusions import (
    affine_after,
    affine_before,
    affine_chain,
    branches,
    branches_apart,
    chain,
    concat,
    pad_after,
    pad_before,
    pad_border,
)
from dacconv.fusions.engine import Fusing, Fusion, plan_fusions
from dacconv.fusions.view import Weights
from dacconv.graph.findings import Fused
from dacconv.graph.types import LAYER_OPS, Graph, Refusal, Rewrite

FUSIONS: tuple[Fusion, ...] = (
    Fusion("conv -> affine", ("affine",), affine_after.find),
    Fusion("affine -> affine", ("affine",), affine_chain.find),
    Fusion("zero padding -> conv", ("conv",), pad_before.find),
    Fusion("affine -> conv", LAYER_OPS, affine_before.find),
    Fusion("padding -> overwritten border", ("fill",), pad_border.find),
    Fusion("conv -> padding with its bias", ("pad",), pad_after.find),
    Fusion("conv -> conv", (*LAYER_OPS, "pool"), chain.find),
    Fusion("added branches", ("add",), branches.find),
    Fusion("branches among other summands", ("add",), branches_apart.find),
    Fusion("joined convs", ("concat",), concat.find),
)
"""The transforms, in the order in which they are tried at a node."""


M = TypeVar("M", bound="Fusable")


class Fusable(Weights, Protocol):
    """What the fusions need of a model."""

    def graph(self) -> Graph:
        """The dataflow."""
        ...

    def rewrite_refusal(self, edit: Rewrite) -> str | None:
        """The reason why ``rewrite`` would refuse an edit; None if it would not."""
        ...

    def rewrite(self, edits: Sequence[Rewrite]) -> Self:
        """A new model with the edits applied."""
        ...


def find_fusions(model: Fusable) -> Fusing:
    """What :func:`fuse` would do to the model."""
    return plan_fusions(model.graph(), model, FUSIONS, model.rewrite_refusal)


def fuse(model: M) -> tuple[M, tuple[Fused, ...], tuple[Refusal, ...]]:
    """The model with everything merged that can be without changing its outputs.

    Arithmetic is float64; each merged weight is cast once to the type that the model stores.

    Returns:
        The new model (the same where nothing was merged), what was merged, and what was left
        as it was with the reason.
    """
    found = find_fusions(model)
    merged = model.rewrite(found.rewrites) if found.rewrites else model
    return merged, found.fused, found.refusals


__all__ = ["FUSIONS", "Fusable", "Fused", "Fusing", "Fusion", "find_fusions", "fuse"]
