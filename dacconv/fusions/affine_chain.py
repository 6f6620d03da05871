"""An affine after an affine is one affine, so that it can go into a conv as a whole.

``(x - mean) * scale + shift`` in loose operations may have a shift of zero in sum, which a
padded conv takes in where it refuses the parts.
"""

from __future__ import annotations

from dacconv.fusions.view import Merge, Site, View, is_zero
from dacconv.fusions.walk import is_bias_of_matmul, is_vector, walk_back
from dacconv.graph.types import Affine


def find(view: View, site: Site) -> Merge | None:
    """Merge the affine ``site`` with the affine that feeds it."""
    found = walk_back(view, site.inputs[0], site)
    if found is None or found.site.op != "affine" or found.transposed or found.obstacle:
        return None
    before = found.site
    if view.blocked(before) or view.blocked(site):
        return None
    first, second = view.affine(before), view.affine(site)
    biased = is_bias_of_matmul(view, view.maker(before.inputs[0]), before)
    if is_zero(second.shift) and not biased:
        return None  # a mere scale goes into any conv, even where the whole would not
    vectors = [site for site, each in ((before, first), (site, second)) if is_vector(each)]
    if len({each.axis for each in vectors}) > 1:
        return None
    axis = vectors[0].axis if vectors else site.axis
    joined = Affine(first.scale * second.scale, first.shift * second.scale + second.shift)
    return Merge(site, before.inputs[0], (before, *found.between, site), joined, axis)
