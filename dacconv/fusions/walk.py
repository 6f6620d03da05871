"""From a value back to what made it, through what changes nothing but the order of axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dacconv.fusions.view import Site, View
from dacconv.graph.types import LAYER_OPS, Affine, Conv, Op

PASSING: frozenset[Op] = frozenset({"identity", "transpose", "reshape"})
"""What an affine can be moved across, as long as it is known where its axis goes."""

NO_AXIS = 1 << 20
"""In the place of an axis that a reshape has mixed with others."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The site behind a value, and the transposes and identities between, in execution order.

    ``obstacle`` says why the way is not the reader's alone, or None.
    """

    site: Site
    between: tuple[Site, ...]
    obstacle: str | None

    @property
    def transposed(self) -> bool:
        """Whether the axes change on the way."""
        return self.reshaped or any(site.op == "transpose" for site in self.between)

    @property
    def reshaped(self) -> bool:
        """Whether there is a reshape, through which the last axis alone is known."""
        return any(site.op == "reshape" for site in self.between)

    def axis_before(self, axis: int) -> int:
        """The axis of the found site's output that has become ``axis`` at the reader."""
        for site in reversed(self.between):
            if site.op == "reshape":
                before, after = site.node.attrs["ranks"]
                axis = before - 1 if axis in (-1, after - 1) else NO_AXIS
            if site.op == "transpose" and axis != NO_AXIS:
                perm = site.node.attrs["perm"]
                axis = int(perm[axis % len(perm)])
        return axis

    def axis_after(self, axis: int) -> int:
        """The axis at the reader that was ``axis`` of the found site's output."""
        for site in self.between:
            if site.op == "reshape":
                before, after = site.node.attrs["ranks"]
                axis = after - 1 if axis in (-1, before - 1) else NO_AXIS
            if site.op == "transpose" and axis != NO_AXIS:
                perm = [int(each) for each in site.node.attrs["perm"]]
                axis = perm.index(axis % len(perm))
        return axis


def walk_back(view: View, value: str, reader: Site) -> Found | None:
    """The first site behind ``value`` that is no identity, transpose or reshape."""
    between: list[Site] = []
    obstacle = view.elsewhere(value, reader.name)
    site = view.maker(value)
    while site is not None and site.op in PASSING and site.inputs:
        between.insert(0, site)
        obstacle = obstacle or view.blocked(site) or view.elsewhere(site.inputs[0], site.name)
        site = view.maker(site.inputs[0])
    return None if site is None else Found(site, tuple(between), obstacle)


def is_channel_axis(view: View, conv: Conv, value: str, axis: int) -> bool:
    """Whether ``axis`` of ``value``, an in- or output of the conv, is that of its channels."""
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
    """Whether ``site`` adds the bias that a MatMul has no place for: there is nothing to merge.

    With data of two axes the two are a Gemm.
    """
    if before is None or before.node.kind != "MatMul" or before.becomes is not None:
        return False
    if view.blocked(site) is not None:
        return False
    bare = bool(np.all(view.affine(site).scale == 1.0))
    return bare and len(view.shape(site.output) or ()) != 2


def is_conv_like(site: Site | None) -> bool:
    """Whether the site is a conv, a transposed conv or a linear layer."""
    return site is not None and site.op in LAYER_OPS


def spatial_size(view: View, value: str, axes: int) -> tuple[int | None, ...] | None:
    """The spatial size of an activation ``(batch, channels, *spatial)`` as far as it is fixed."""
    shape = view.shape(value) if view.fixed else None
    return None if shape is None or len(shape) != axes + 2 else tuple(shape[2:])
