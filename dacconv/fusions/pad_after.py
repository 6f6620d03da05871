"""1x1 conv -> padding with its own bias: the conv makes that border from padded zeros.

What stands before a conv without padding in RVSR, RT4KSR, ECBSR and the padded BatchNorm of
Diverse Branch Block (arXiv 2103.13425, section 4.1), so that 1x1 -> kxk is exact at the border.
"""

from __future__ import annotations

from dacconv.fusions.view import Merge, Obstacle, Site, View
from dacconv.fusions.walk import is_conv_like, walk_back
from dacconv.graph.convs import Inexact, pad_output


def find(view: View, site: Site) -> Merge | Obstacle | None:
    """Merge the padding ``site`` into the conv that feeds it."""
    found = walk_back(view, site.inputs[0], site)
    if found is None or not is_conv_like(found.site) or found.transposed:
        return None
    padding = view.padding(site)
    if padding.mode != "constant":
        return None
    if padding.zeros and _feeds_a_conv(view, site):
        return None  # the conv after it takes it in for nothing
    before = found.site
    reason = view.blocked(site) or found.obstacle
    if reason is None and (blocked := view.blocked(before)):
        reason = f"{before.title} before it: {blocked}"
    if reason is not None:
        return Obstacle(site.name, reason)
    conv = view.conv(before)
    if padding.spatial is None or len(padding.spatial) != len(conv.kernel):
        return Obstacle(site.name, "it pads more than the spatial axes")
    try:
        padded = pad_output(conv, padding.spatial, padding.value)
    except Inexact as refusal:
        return Obstacle(site.name, str(refusal))
    return Merge(site, before.inputs[0], (before, *found.between, site), padded)


def _feeds_a_conv(view: View, site: Site) -> bool:
    readers = view.readers(site.output)
    return len(readers) == 1 and is_conv_like(view.get(next(iter(readers))))
