"""Lossless fusions: several operators that compute what one conv can are merged into one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self, TypeVar

from dacconv.fusions import affine, branches, chain, concat, padding
from dacconv.fusions.engine import Fusion, FusionPlan, plan_fusions
from dacconv.fusions.view import Weights
from dacconv.graph.findings import Fused
from dacconv.graph.types import Graph, Refusal, Rewrite

FUSIONS: tuple[Fusion, ...] = (
    Fusion("conv -> affine", ("affine",), affine.find_after_conv),
    Fusion("affine -> affine", ("affine",), affine.find_after_affine),
    Fusion("zero padding -> conv", ("conv",), padding.find_before_conv),
    Fusion("affine -> conv", ("conv", "conv_transpose", "linear"), affine.find_before_conv),
    Fusion("padding -> overwritten border", ("fill",), padding.find_overwritten_border),
    Fusion("conv -> padding with its bias", ("pad",), padding.find_after_conv),
    Fusion("conv -> conv", ("conv", "conv_transpose", "linear", "pool"), chain.find),
    Fusion("added branches", ("add",), branches.find),
    Fusion("branches among other summands", ("add",), branches.find_among_others),
    Fusion("joined convs", ("concat",), concat.find),
)
"""The fusions, in the order in which they are tried at a node."""


M = TypeVar("M", bound="Fusable")


class Fusable(Weights, Protocol):
    """The part of a model that fusions need; each :class:`dacconv.formats.base.Model` has it."""

    def graph(self) -> Graph:
        """The dataflow."""
        ...

    def rewrite_refusal(self, edit: Rewrite, among: Sequence[Rewrite] = ()) -> str | None:
        """The reason why ``rewrite`` would refuse an edit ``among`` others; None where not."""
        ...

    def rewrite(self, edits: Sequence[Rewrite]) -> Self:
        """A new model with the edits applied."""
        ...


def find_fusions(model: Fusable) -> FusionPlan:
    """The fusions that :func:`fuse` would apply to the model."""
    return plan_fusions(model.graph(), model, FUSIONS, model.rewrite_refusal)


def fuse(model: M) -> tuple[M, tuple[Fused, ...], tuple[Refusal, ...]]:
    """Merge everything that can be merged without changing the model's outputs.

    Arithmetic is float64; each merged weight is cast once to the type that the model stores.

    Returns:
        The new model (``model`` itself if nothing can be merged), the merges, and the nodes that
        cannot be merged, each with the reason.
    """
    fusions = find_fusions(model)
    fused_model = model.rewrite(fusions.rewrites) if fusions.rewrites else model
    return fused_model, fusions.fused, fusions.refusals


__all__ = ["FUSIONS", "Fusable", "Fused", "Fusion", "FusionPlan", "find_fusions", "fuse"]
