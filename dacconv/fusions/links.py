"""Pairs of sites with nothing between them that changes a value: what fusions merge.

A transpose, a reshape of the leading axes or an identity may stand between the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dacconv.fusions.view import Merge, Site, View
from dacconv.graph.types import LAYER_OPS, Affine, Conv, Op

TRANSPARENT: frozenset[Op] = frozenset({"identity", "transpose", "reshape"})
"""Operators that an affine can be moved across, as long as its axis can be followed."""

NO_AXIS = 1 << 20
"""Stands for an axis that a reshape has mixed with others."""


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """``reader`` and the site whose output reaches it, through the sites ``between`` alone.

    ``between`` is in order of execution. ``obstacle`` says where a value on the way is used
    by somebody else or a site must stay; None where the reader has it to itself.
    """

    source: Site
    between: tuple[Site, ...]
    reader: Site
    obstacle: str | None

    @property
    def transposed(self) -> bool:
        """Whether the order of the axes changes between the two."""
        return self.reshaped or any(site.op == "transpose" for site in self.between)

    @property
    def reshaped(self) -> bool:
        """Whether there is a reshape, after which only the last axis can be followed."""
        return any(site.op == "reshape" for site in self.between)

    def source_axis(self, axis: int) -> int:
        """The axis of the source's output that is ``axis`` of the reader's input."""
        for site in reversed(self.between):
            if site.op == "reshape":
                before, after = site.node.attrs["ranks"]
                axis = before - 1 if axis in (-1, after - 1) else NO_AXIS
            if site.op == "transpose" and axis != NO_AXIS:
                perm = site.node.attrs["perm"]
                axis = int(perm[axis % len(perm)])
        return axis

    def reader_axis(self, axis: int) -> int:
        """The axis of the reader's input that is ``axis`` of the source's output."""
        for site in self.between:
            if site.op == "reshape":
                before, after = site.node.attrs["ranks"]
                axis = after - 1 if axis in (-1, before - 1) else NO_AXIS
            if site.op == "transpose" and axis != NO_AXIS:
                perm = [int(each) for each in site.node.attrs["perm"]]
                axis = perm.index(axis % len(perm))
        return axis

    def refusal(self, view: View, site: Site) -> str | None:
        """The reason why ``site``, one of the two, must not be merged into the other; else None."""
        other, place = (self.source, "before") if site is self.reader else (self.reader, "after")
        reason = view.refusal(site) or self.obstacle
        if reason is None and (refusal := view.refusal(other)):
            reason = f"{other.title} {place} it: {refusal}"
        return reason

    def merge(self, conv_site: Site, conv: Conv) -> Merge:
        """Put ``conv`` in the place of both sites; ``conv_site`` is the one that was a conv.

        Across a transpose the conv stays where it is: the readers of the other site's output
        read that site's input from then on.
        """
        source, reader = self.source, self.reader
        if self.transposed:
            other = reader if conv_site is source else source
            alias = {other.output: other.inputs[0]}
            return Merge(conv_site, conv_site.inputs[0], (source, reader), conv, alias=alias)
        return Merge(reader, source.inputs[0], (source, *self.between, reader), conv)


def link_to(view: View, value: str, reader: Site) -> Link | None:
    """The link from ``reader`` back to the nearest site that computes what ``value`` holds.

    None where ``value`` comes from an input of the model.
    """
    between: list[Site] = []
    obstacle = view.other_use(value, reader.name)
    site = view.producer(value)
    while site is not None and site.op in TRANSPARENT and site.inputs:
        between.insert(0, site)
        obstacle = obstacle or view.refusal(site) or view.other_use(site.inputs[0], site.name)
        site = view.producer(site.inputs[0])
    return None if site is None else Link(site, tuple(between), reader, obstacle)


def is_channel_axis(view: View, conv: Conv, value: str, axis: int) -> bool:
    """Whether ``axis`` of ``value``, an input or output of the conv, holds the channels."""
    axes = len(conv.kernel)
    if axes:
        return axis % (axes + 2) == 1 and -axes - 2 <= axis < axes + 2
    shape = view.shape(value)
    if shape is None:
        return axis == -1
    return axis in (-1, len(shape) - 1)


def is_vector(affine: Affine) -> bool:
    """Whether the affine differs from channel to channel, so that its axis matters."""
    return affine.scale.size > 1 or affine.shift.size > 1


def is_bias_of_matmul(view: View, before: Site | None, site: Site) -> bool:
    """Whether ``site`` adds a bias to a MatMul, which cannot hold one: nothing can be merged.

    A MatMul of matrices (two axes) can become a Gemm, which holds a bias.
    """
    if before is None or before.node.kind != "MatMul" or before.replacement is not None:
        return False
    if view.refusal(site) is not None:
        return False
    only_adds = bool(np.all(view.affine(site).scale == 1.0))
    return only_adds and len(view.shape(site.output) or ()) != 2


def is_conv_like(site: Site | None) -> bool:
    """Whether the site is a conv, a transposed conv or a linear layer."""
    return site is not None and site.op in LAYER_OPS


def spatial_size(view: View, value: str, axes: int) -> tuple[int | None, ...] | None:
    """The spatial size of an activation ``(batch, channels, *spatial)`` as far as it is fixed."""
    shape = view.shape(value) if view.fixed else None
    return None if shape is None or len(shape) != axes + 2 else tuple(shape[2:])
