"""Branches of one input among other summands: ``conv_1(x) + y + conv_2(x)``.

Two of them become one conv in the place of one, and the sum that added the other goes.
"""

from __future__ import annotations

from itertools import permutations

from dacconv.fusions.branches import Term, common_sources, merge, sites_of, terms_of
from dacconv.fusions.routes import why_open
from dacconv.fusions.view import Merge, Site, View
from dacconv.graph.convs import Inexact


def find(view: View, site: Site) -> Merge | None:
    """Merge two of the summands of ``site`` that are not neighbours."""
    inner: list[Site] = []
    terms = list(terms_of(view, site, 1.0, inner))
    if len(terms) < 3 or view.blocked(site):
        return None
    for kept, gone in permutations(terms, 2):
        step = _pair(view, kept, gone)
        if step is not None:
            return step
    return None


def _pair(view: View, kept: Term, gone: Term) -> Merge | None:
    parent = gone.parent
    if parent is kept.parent or gone.other is None or gone.other[1] != 1.0:
        return None  # what is left of the sum must be its other summand as it is
    if view.is_output(parent.output) or view.elsewhere(kept.value, kept.parent.name):
        return None
    for source in common_sources([kept, gone]):
        routes = [route for term in (kept, gone) if (route := term.route(source)) is not None]
        if not routes[0].sites or not any(route.convs for route in routes):
            continue
        parts = sites_of(routes)
        if routes[1].sites and view.elsewhere(gone.value, parent.name):
            continue
        inside = [site for site in parts if site.output not in (kept.value, gone.value)]
        if why_open(view, inside, [site.name for site in parts]) is not None:
            continue
        if any(view.blocked(site) for site in parts):
            continue
        try:
            merged = merge(view, source, [1.0, gone.coefficient / kept.coefficient], routes)
        except Inexact:
            continue
        target = routes[0].sites[-1]
        alias = {parent.output: gone.other[0]}
        return Merge(target, source, (*parts, parent), merged, alias=alias)
    return None
