"""Zero padding -> conv: the conv pads by itself. Also before a Transpose."""

from __future__ import annotations

from dacconv.fusions.view import Merge, Obstacle, Padding, Site, View
from dacconv.fusions.walk import walk_back
from dacconv.graph.convs import Inexact, pad_input


def find(view: View, site: Site) -> Merge | Obstacle | None:
    """Merge the padding that feeds the conv ``site`` into it."""
    found = walk_back(view, site.inputs[0], site)
    if (
        found is None
        or found.reshaped
        or found.site.op != "pad"
        or not view.padding(found.site).zeros
    ):
        return None
    before = found.site
    reason = view.blocked(before) or found.obstacle
    if reason is None and (blocked := view.blocked(site)):
        reason = f"{site.title} after it: {blocked}"
    if reason is not None:
        return Obstacle(before.name, reason)
    pads = view.padding(before).pads
    turned = Padding(tuple(pads[found.axis_before(axis)] for axis in range(len(pads))))
    conv = view.conv(site)
    if turned.spatial is None or len(turned.spatial) != len(conv.kernel):
        return Obstacle(before.name, "it pads more than the spatial axes")
    try:
        padded = pad_input(turned.spatial, conv)
    except Inexact as refusal:
        return Obstacle(before.name, str(refusal))
    if found.transposed:
        alias = {before.output: before.inputs[0]}
        return Merge(site, site.inputs[0], (before, site), padded, alias=alias)
    return Merge(site, before.inputs[0], (before, *found.between, site), padded)
