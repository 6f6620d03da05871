"""Affines (BatchNorm, or single Add, Sub, Mul, Div by constants) go into a conv next to them.

Into a conv, a transposed conv or a linear layer, also across a Transpose. Sources: RepVGG (arXiv
2101.03697, section 3.3), Diverse Branch Block (arXiv 2103.13425, transform I).
"""

from __future__ import annotations

from dacconv.fusions.links import (
    NO_AXIS,
    Link,
    is_bias_of_matmul,
    is_channel_axis,
    is_conv_like,
    is_vector,
    link_to,
)
from dacconv.fusions.view import Merge, Obstacle, Site, View, is_zero
from dacconv.graph.convs import Inexact, absorb_affine, fold_affine
from dacconv.graph.types import Affine


def find_after_conv(view: View, site: Site) -> Merge | Obstacle | None:
    """Merge the affine ``site`` into the conv that feeds it."""
    link = link_to(view, site.inputs[0], site)
    if link is None or not is_conv_like(link.source):
        return None
    if is_bias_of_matmul(view, link.source, site):
        return None
    return _merge(view, link, affine_site=site, conv_site=link.source)


def find_before_conv(view: View, site: Site) -> Merge | Obstacle | None:
    """Merge the affine that feeds the conv ``site`` into it.

    A shift is refused where the conv pads with zeros, because the border would miss it.
    """
    link = link_to(view, site.inputs[0], site)
    if link is None or link.source.op != "affine":
        return None
    return _merge(view, link, affine_site=link.source, conv_site=site)


def _merge(
    view: View, link: Link, *, affine_site: Site, conv_site: Site
) -> Merge | Obstacle | None:
    after = affine_site is link.reader
    reason = link.refusal(view, affine_site)
    if reason is None and after and link.transposed and view.is_output(affine_site.output):
        reason = "it is an output of the model, behind a Transpose"
    if reason is not None:
        return Obstacle(affine_site.name, reason)
    conv, affine = view.conv(conv_site), view.affine(affine_site)
    if is_vector(affine):
        axis = (link.source_axis if after else link.reader_axis)(affine_site.axis)
        value = conv_site.output if after else conv_site.inputs[0]
        if axis == NO_AXIS:
            return None
        if not is_channel_axis(view, conv, value, axis):
            side = "output" if after else "input"
            reason = f"it acts on axis {axis} of the {side} of {conv_site.title}"
            return Obstacle(affine_site.name, reason)
    try:
        merged = fold_affine(conv, affine) if after else absorb_affine(affine, conv)
    except Inexact as error:
        reason = str(error) if after else f"not into {conv_site.title} after it: {error}"
        return Obstacle(affine_site.name, reason)
    return link.merge(conv_site, merged)


def find_after_affine(view: View, site: Site) -> Merge | None:
    """Merge the affine ``site`` with the affine that feeds it, so that a conv takes in both.

    ``(x - mean) * scale + shift`` in single operators may have a shift of zero in total, which
    a padded conv takes in although it refuses the parts.
    """
    link = link_to(view, site.inputs[0], site)
    if link is None or link.source.op != "affine" or link.transposed or link.obstacle:
        return None
    before = link.source
    if view.refusal(before) or view.refusal(site):
        return None
    first, second = view.affine(before), view.affine(site)
    biased = is_bias_of_matmul(view, view.producer(before.inputs[0]), before)
    if is_zero(second.shift) and not biased:
        return None  # a scale alone goes into any conv, even where both together would not
    vectors = [each for each, affine in ((before, first), (site, second)) if is_vector(affine)]
    if len({each.axis for each in vectors}) > 1:
        return None
    axis = vectors[0].axis if vectors else site.axis
    joined = Affine(first.scale * second.scale, first.shift * second.scale + second.shift)
    return Merge(site, before.inputs[0], (before, *link.between, site), joined, axis)
