"""Zero padding -> conv: the conv pads by itself. Also before a Transpose."""

from __future__ import annotations

from dacconv.fusions.view import Merge, Obstacle, Site, View, is_zero
from dacconv.fusions.walk import Found, walk_back
from dacconv.numerics.kernels import Inexact, Pads, pad_input


def find(view: View, site: Site) -> Merge | Obstacle | None:
    """Merge the padding that feeds the conv ``site`` into it."""
    found = walk_back(view, site.inputs[0], site)
    if found is None or found.site.op != "pad" or not is_zero_pad(found.site):
        return None
    before = found.site
    reason = view.blocked(before) or found.obstacle
    if reason is None and (blocked := view.blocked(site)):
        reason = f"{site.title} after it: {blocked}"
    if reason is not None:
        return Obstacle(before.name, reason)
    conv = view.conv(site)
    pads = pads_at_reader(found)
    if len(pads) != len(conv.kernel) + 2 or any(any(pad) for pad in pads[:2]):
        return Obstacle(before.name, "it pads more than the spatial axes")
    try:
        padded = pad_input(pads[2:], conv)
    except Inexact as refusal:
        return Obstacle(before.name, str(refusal))
    if found.transposed:
        alias = {before.output: before.inputs[0]}
        return Merge(site, site.inputs[0], (before, site), padded, alias=alias)
    return Merge(site, before.inputs[0], (before, *found.between, site), padded)


def is_zero_pad(site: Site) -> bool:
    """Whether a padding fills with zeros."""
    attrs = site.node.attrs
    return attrs.get("mode") == "constant" and is_zero(attrs.get("value", 0.0))


def pads_at_reader(found: Found) -> Pads:
    """The padding's begin and end per axis, in the order of axes of the reader."""
    pads = [(int(begin), int(end)) for begin, end in found.site.node.attrs["pads"]]
    return tuple(pads[found.axis_before(axis)] for axis in range(len(pads)))
