"""conv -> BatchNorm, also spelled as loose Sub, Mul, Add and Div, also behind a Transpose.

Linear layers and transposed convs alike. Source: RepVGG (arXiv 2101.03697, section 3.3), Diverse
Branch Block (2103.13425, transform I).
"""

from __future__ import annotations

from dacconv.fusions.view import Merge, Obstacle, Site, View
from dacconv.fusions.walk import (
    NO_AXIS,
    is_bias_of_matmul,
    is_channel_axis,
    is_conv_like,
    is_vector,
    walk_back,
)
from dacconv.graph.convs import Inexact, fold_affine


def find(view: View, site: Site) -> Merge | Obstacle | None:
    """Merge the affine ``site`` into the conv that feeds it."""
    found = walk_back(view, site.inputs[0], site)
    if found is None or not is_conv_like(found.site):
        return None
    before = found.site
    if is_bias_of_matmul(view, before, site):
        return None
    reason = view.blocked(site) or found.obstacle
    if reason is None and (blocked := view.blocked(before)):
        reason = f"{before.title} before it: {blocked}"
    if reason is None and found.transposed and view.is_output(site.output):
        reason = "it is an output of the model, behind a Transpose"
    if reason is not None:
        return Obstacle(site.name, reason)
    conv, affine = view.conv(before), view.affine(site)
    axis = found.axis_before(site.axis)
    if is_vector(affine) and axis == NO_AXIS:
        return None
    if is_vector(affine) and not is_channel_axis(view, conv, before.output, axis):
        return Obstacle(site.name, f"it acts on axis {axis} of the output of {before.title}")
    try:
        folded = fold_affine(conv, affine)
    except Inexact as refusal:
        return Obstacle(site.name, str(refusal))
    if found.transposed:
        alias = {site.output: site.inputs[0]}
        return Merge(before, before.inputs[0], (before, site), folded, alias=alias)
    return Merge(site, before.inputs[0], (before, *found.between, site), folded)
