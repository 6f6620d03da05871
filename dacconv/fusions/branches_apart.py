"""Branches of one input among other summands: ``conv_1(x) + y + conv_2(x)``.

Two of them become one conv in the place of one, and the sum that added the other goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dacconv.fusions.branches import Term, common_sources, merge, sites_of, terms_of
from dacconv.fusions.routes import why_open
from dacconv.fusions.view import Merge, Site, View
from dacconv.graph.convs import Inexact


def find(view: View, site: Site) -> Merge | None:
    """Merge two of the summands of ``site`` that are not neighbours."""
    terms, inner = terms_of(view, site)
    if not inner or len(terms) < 3 or view.blocked(site):
        return None  # the summands of one sum are neighbours
    for kept, gone in _pairs(terms):
        step = _pair(view, kept, gone)
        if step is not None:
            return step
    return None


def _pairs(terms: Sequence[Term]) -> Iterator[tuple[Term, Term]]:
    """The ordered pairs of terms that have a source in common."""
    by_source: dict[str, list[int]] = {}
    for index, term in enumerate(terms):
        for source in term.routes:
            by_source.setdefault(source, []).append(index)
    for index, kept in enumerate(terms):
        others = {each for source in kept.routes for each in by_source[source]} - {index}
        for other in sorted(others):
            if terms[other].other is not None:
                yield kept, terms[other]


def _pair(view: View, kept: Term, gone: Term) -> Merge | None:
    parent = gone.parent
    if parent is kept.parent or gone.other is None or gone.other[1] != 1.0:
        return None  # what is left of the sum must be its other summand as it is
    if view.is_output(parent.output) or view.elsewhere(kept.value, kept.parent.name):
        return None
    for source in common_sources([kept, gone]):
        routes = [term.routes[source] for term in (kept, gone)]
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
