"""Convs of one input whose outputs are concatenated along the channels: one conv.

Source: Diverse Branch Block (arXiv 2103.13425, transform IV).
"""

from __future__ import annotations

from dacconv.fusions.links import is_channel_axis, link_to, spatial_size
from dacconv.fusions.routes import Price, price_of, require_no_costlier
from dacconv.fusions.view import Merge, Obstacle, Site, View
from dacconv.graph.convs import Inexact
from dacconv.graph.merging import concat_convs
from dacconv.graph.types import LAYER_OPS


def find(view: View, site: Site) -> Merge | Obstacle | None:
    """Merge the convs whose outputs ``site`` concatenates."""
    inputs = [link_to(view, value, site) for value in site.inputs]
    links = [link for link in inputs if link is not None and link.source.op in LAYER_OPS]
    if len(links) < 2 or len(links) < len(inputs) or any(link.transposed for link in links):
        return None
    branches = [link.source for link in links]
    if len({branch.inputs[0] for branch in branches}) > 1:
        return None
    reason = view.refusal(site) or next((link.obstacle for link in links if link.obstacle), None)
    for branch in branches:
        if reason is None and (refusal := view.refusal(branch)):
            reason = f"{branch.title}: {refusal}"
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
    except Inexact as error:
        return Obstacle(site.name, f"its convs are not merged: {error}")
    between = [each for link in links for each in link.between]
    return Merge(site, source, (*branches, *between, site), merged)
