"""Paddings go into the conv before or after them.

A border of zeros becomes the padding of the conv after it. A border that holds the bias of a 1x1
conv equals what that conv computes from zeros, so it becomes the padding of the conv before it.
RVSR, RT4KSR, ECBSR and the padded BatchNorm of Diverse Branch Block (arXiv 2103.13425, section
4.1) pad like that before a conv without padding, so that 1x1 -> kxk is exact at the border.
"""

from __future__ import annotations

import numpy as np

from dacconv.fusions.links import is_conv_like, link_to
from dacconv.fusions.view import Merge, Obstacle, Padding, Site, View
from dacconv.graph.convs import SAME_VALUE, Inexact, pad_input, pad_output
from dacconv.graph.types import Shape


def find_before_conv(view: View, site: Site) -> Merge | Obstacle | None:
    """Merge the zero padding that feeds the conv ``site`` into it."""
    link = link_to(view, site.inputs[0], site)
    if link is None or link.reshaped or link.source.op != "pad":
        return None
    pad = link.source
    if not view.padding(pad).zeros:
        return None
    if reason := link.refusal(view, pad):
        return Obstacle(pad.name, reason)
    pads = view.padding(pad).pads
    padding = Padding(tuple(pads[link.source_axis(axis)] for axis in range(len(pads))))
    conv = view.conv(site)
    if padding.spatial is None or len(padding.spatial) != len(conv.kernel):
        return Obstacle(pad.name, "it pads more than the spatial axes")
    try:
        return link.merge(site, pad_input(padding.spatial, conv))
    except Inexact as error:
        return Obstacle(pad.name, str(error))


def find_after_conv(view: View, site: Site) -> Merge | Obstacle | None:
    """Merge the padding ``site`` into the 1x1 conv that feeds it, whose bias it pads with."""
    link = link_to(view, site.inputs[0], site)
    if link is None or not is_conv_like(link.source) or link.transposed:
        return None
    padding = view.padding(site)
    if padding.mode != "constant":
        return None
    if padding.zeros and _feeds_a_conv(view, site):
        return None  # the conv after it takes zeros in at no cost
    if reason := link.refusal(view, site):
        return Obstacle(site.name, reason)
    conv = view.conv(link.source)
    if padding.spatial is None or len(padding.spatial) != len(conv.kernel):
        return Obstacle(site.name, "it pads more than the spatial axes")
    try:
        return link.merge(link.source, pad_output(conv, padding.spatial, padding.value))
    except Inexact as error:
        return Obstacle(site.name, str(error))


def _feeds_a_conv(view: View, site: Site) -> bool:
    readers = view.readers(site.output)
    return len(readers) == 1 and is_conv_like(view.get(next(iter(readers))))


def find_overwritten_border(view: View, site: Site) -> Merge | None:
    """Merge a zero padding and the assignments to slices that fill its border with constants.

    Networks with a padded BatchNorm are exported like that: ``F.pad``, then four assignments.
    ``site`` is the last of the assignments, where the whole border is known.
    """
    if any(
        (reader := view.get(name)) and reader.op == "fill" for name in view.readers(site.output)
    ):
        return None
    fills: list[Site] = []
    current: Site | None = site
    while current is not None and current.op == "fill" and not view.refusal(current):
        fills.insert(0, current)
        if view.other_use(current.inputs[0], current.name) is not None:
            return None
        current = view.producer(current.inputs[0])
    if current is None or current.op != "pad" or view.refusal(current):
        return None
    padding = view.padding(current)
    value = _border(padding, fills, view.shape(current.output))
    if value is None:
        return None
    return Merge(site, current.inputs[0], (current, *fills), Padding(padding.pads, value))


def _border(padding: Padding, fills: list[Site], shape: Shape | None) -> np.ndarray | None:
    """The value, ``()`` or ``(channels,)``, that fills the border exactly, or None."""
    covered: set[tuple[int, int]] = set()
    values = [np.asarray(fill.node.attrs["value"], np.float64).reshape(-1) for fill in fills]
    for fill in fills:
        attrs = fill.node.attrs
        axis = int(attrs["axis"]) % len(padding.pads)
        side = _side(
            padding.pads[axis], attrs["begin"], attrs["end"], None if shape is None else shape[axis]
        )
        if side is None:
            return None
        covered.add((axis, side))
    border = {(axis, side) for axis, pad in enumerate(padding.pads) for side in (0, 1) if pad[side]}
    first = values[0]
    equal = all(
        np.broadcast_shapes(each.shape, first.shape)
        and np.allclose(each, first, rtol=SAME_VALUE, atol=SAME_VALUE * np.abs(first).max())
        for each in values
    )
    if covered != border or padding.mode != "constant" or not equal:
        return None
    return max(values, key=lambda each: each.size)


def _side(pad: tuple[int, int], begin: int | None, end: int | None, size: int | None) -> int | None:
    """0 or 1 where a slice is exactly the padding at the beginning or the end; else None."""
    if size is not None:
        begin, end, _ = slice(begin, end).indices(size)
        if (begin, end) == (0, pad[0]):
            return 0
        return 1 if (begin, end) == (size - pad[1], size) else None
    if begin in (None, 0) and end == pad[0]:
        return 0
    open_end = end is None or end >= 2**31 - 1
    return 1 if open_end and begin == -pad[1] and pad[1] else None
