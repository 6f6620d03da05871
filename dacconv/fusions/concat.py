"""Convs of one input that are joined along the channels: one conv.

Source: Diverse Branch Block (arXiv 2103.13425, transform IV).
"""

from __future__ import annotations

from dacconv.fusions.routes import Price, price_of, require_no_costlier
from dacconv.fusions.view import Merge, Obstacle, Site, View
from dacconv.fusions.walk import is_channel_axis, spatial_size, walk_back
from dacconv.graph.convs import Inexact
from dacconv.graph.merging import concat_convs
from dacconv.graph.types import LAYER_OPS


def find(view: View, site: Site) -> Merge | Obstacle | None:
    """Merge the convs that the concatenation ``site`` joins."""
    found = [walk_back(view, value, site) for value in site.inputs]
    ways = [way for way in found if way is not None and way.site.op in LAYER_OPS]
    if len(ways) < 2 or len(ways) < len(site.inputs) or any(way.transposed for way in ways):
        return None
    branches = [way.site for way in ways]
    if len({branch.inputs[0] for branch in branches}) > 1:
        return None
    reason = view.blocked(site) or next((way.obstacle for way in ways if way.obstacle), None)
    for branch in branches:
        if reason is None and (blocked := view.blocked(branch)):
            reason = f"{branch.title}: {blocked}"
    if reason is not None:
        return Obstacle(site.name, reason)
    convs = [view.conv(branch) for branch in branches]
    axis = int(site.node.attrs.get("axis", 1))
    if not is_channel_axis(view, convs[0], site.output, axis):
        return None
    source = branches[0].inputs[0]
    try:
        size = spatial_size(view, source, len(convs[0].kernel))
        merged = concat_convs(convs, size)
        before = sum((price_of(conv) for conv in convs), Price(0.0, 0))
        require_no_costlier(price_of(merged), before)
    except Inexact as refusal:
        return Obstacle(site.name, f"its convs are not merged: {refusal}")
    between = [each for way in ways for each in way.between]
    return Merge(site, source, (*branches, *between, site), merged)
