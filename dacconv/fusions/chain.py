"""conv -> conv with nothing between: one conv, if the border stays exact and it costs no more.

1x1 -> kxk and kxk -> 1x1 (Diverse Branch Block, arXiv 2103.13425, transform III), average
pooling as one of the two (transform V), linear layers, and a 1x1 conv next to a transposed conv.
"""

from __future__ import annotations

from dacconv.fusions.links import link_to
from dacconv.fusions.routes import (
    Route,
    as_conv,
    first_conv,
    is_linear,
    price,
    price_of,
    require_no_costlier,
)
from dacconv.fusions.view import Merge, Obstacle, Site, View
from dacconv.graph.convs import Inexact
from dacconv.graph.types import LAYER_OPS, Conv


def find(view: View, site: Site) -> Merge | Obstacle | None:
    """Merge the conv or pool ``site`` with the conv or pool before it."""
    if not _is_kernel(view, site):
        return None
    link = link_to(view, site.inputs[0], site)
    if link is None or not _is_kernel(view, link.source) or link.transposed:
        return None
    before = link.source
    route = Route(before.inputs[0], (before, *link.between, site))
    if not route.convs:
        return None
    reason = view.refusal(site) or link.obstacle
    if reason is None and (refusal := view.refusal(before)):
        reason = f"{before.title}: {refusal}"
    if reason is None:
        try:
            return Merge(site, route.source, route.sites, _merge(view, route))
        except Inexact as error:
            reason = str(error)
    return Obstacle(site.name, f"not merged with {before.title} before it: {reason}")


def _merge(view: View, route: Route) -> Conv:
    first, cost = first_conv(view, [route]), price(view, [route])
    merged = as_conv(view, route, first.in_channels, len(first.kernel), cost)
    require_no_costlier(price_of(merged), cost)
    return merged


def _is_kernel(view: View, site: Site) -> bool:
    return site.op in LAYER_OPS or (site.op == "pool" and is_linear(view, site))
