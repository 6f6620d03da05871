"""BatchNorm -> conv, where no zero-padded border would miss the shift.

Also spelled as loose Sub, Mul, Add and Div, also before a Transpose; linear layers alike.
"""

from __future__ import annotations

from dacconv.fusions.view import Merge, Obstacle, Site, View
from dacconv.fusions.walk import NO_AXIS, is_channel_axis, is_vector, walk_back
from dacconv.graph.convs import Inexact, absorb_affine


def find(view: View, site: Site) -> Merge | Obstacle | None:
    """Merge the affine that feeds the conv ``site`` into it."""
    found = walk_back(view, site.inputs[0], site)
    if found is None or found.site.op != "affine":
        return None
    before = found.site
    reason = view.blocked(before) or found.obstacle
    if reason is None and (blocked := view.blocked(site)):
        reason = f"{site.title} after it: {blocked}"
    if reason is not None:
        return Obstacle(before.name, reason)
    conv, affine = view.conv(site), view.affine(before)
    axis = found.axis_after(before.axis)
    if is_vector(affine) and axis == NO_AXIS:
        return None
    if is_vector(affine) and not is_channel_axis(view, conv, site.inputs[0], axis):
        return Obstacle(before.name, f"it acts on axis {axis} of the input of {site.title}")
    try:
        absorbed = absorb_affine(affine, conv)
    except Inexact as refusal:
        return Obstacle(before.name, f"not into {site.title} after it: {refusal}")
    if found.transposed:
        alias = {before.output: before.inputs[0]}
        return Merge(site, site.inputs[0], (before, site), absorbed, alias=alias)
    return Merge(site, before.inputs[0], (before, *found.between, site), absorbed)
