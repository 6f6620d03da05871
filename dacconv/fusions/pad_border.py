"""Zero padding whose border is then overwritten by constants: padding with these constants.

How networks with a padded BatchNorm spell it: ``F.pad``, then four assignments to slices
(Diverse Branch Block, arXiv 2103.13425, section 4.1; RVSR, RT4KSR, ECBSR).
"""

from __future__ import annotations

import numpy as np

from dacconv.fusions.view import Merge, Padding, Site, View
from dacconv.graph.convs import SAME_VALUE
from dacconv.graph.types import Shape


def find(view: View, site: Site) -> Merge | None:
    """Merge the overwriting ``site``, the ones before it and the padding before these."""
    if any(
        (reader := view.get(name)) and reader.op == "fill" for name in view.readers(site.output)
    ):
        return None  # the last one is where the whole border is known
    fills: list[Site] = []
    current: Site | None = site
    while current is not None and current.op == "fill" and not view.blocked(current):
        fills.insert(0, current)
        if view.elsewhere(current.inputs[0], current.name) is not None:
            return None
        current = view.maker(current.inputs[0])
    if current is None or current.op != "pad" or view.blocked(current):
        return None
    padding = view.padding(current)
    value = _border(padding, fills, view.shape(current.output))
    if value is None:
        return None
    filled = Padding(padding.pads, value)
    return Merge(site, current.inputs[0], (current, *fills), filled)


def _border(padding: Padding, fills: list[Site], shape: Shape | None) -> np.ndarray | None:
    """The one value that covers the border exactly; None where there is no such value."""
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
    wanted = {(axis, side) for axis, pad in enumerate(padding.pads) for side in (0, 1) if pad[side]}
    first = values[0]
    alike = all(
        np.broadcast_shapes(each.shape, first.shape)
        and np.allclose(each, first, rtol=SAME_VALUE, atol=SAME_VALUE * np.abs(first).max())
        for each in values
    )
    if covered != wanted or padding.mode != "constant" or not alike:
        return None
    return max(values, key=lambda each: each.size)


def _side(pad: tuple[int, int], begin: int | None, end: int | None, size: int | None) -> int | None:
    """Whether a slice is just what was padded at the beginning (0) or at the end (1)."""
    if size is not None:
        begin, end, _ = slice(begin, end).indices(size)
        if (begin, end) == (0, pad[0]):
            return 0
        return 1 if (begin, end) == (size - pad[1], size) else None
    if begin in (None, 0) and end == pad[0]:
        return 0
    open_end = end is None or end >= 2**31 - 1
    return 1 if open_end and begin == -pad[1] and pad[1] else None
