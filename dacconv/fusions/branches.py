"""Branches of one input whose outputs are added: one conv.

A branch is a chain of convs, BatchNorms, average pools and constant scales, or the input
itself; smaller kernels are embedded in the largest. Sources: ACNet (arXiv 1908.03930, section
3.2), RepVGG (2101.03697, section 3.3), Diverse Branch Block (2103.13425, transforms II, V, VI).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dacconv.fusions.links import spatial_size
from dacconv.fusions.routes import (
    Route,
    as_conv,
    first_conv,
    price,
    price_of,
    removal_refusal,
    require_no_costlier,
    routes_to,
)
from dacconv.fusions.view import Merge, Obstacle, Site, View
from dacconv.graph.convs import Inexact, fold_affine
from dacconv.graph.merging import add_convs
from dacconv.graph.types import Affine, Conv

MOST_SUMS = 24
"""The largest number of nested sums that are regarded as one sum. The branches of a longer sum
are merged two at a time, as they are added. The limit keeps the time linear."""


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """One summand: a coefficient times a value, and its linear routes, by source.

    ``parent`` is the sum that reads it; ``other`` is the other value that this sum adds, with its
    coefficient, or None where it adds several.
    """

    value: str
    coefficient: float
    routes: Mapping[str, Route]
    parent: Site
    other: tuple[str, float] | None


def find(view: View, site: Site) -> Merge | Obstacle | None:
    """Merge the branches that the sum ``site`` adds."""
    terms, nested = terms_of(view, site)
    reason: str | None = None
    for source in common_sources(terms):
        routes = [term.routes[source] for term in terms]
        if not any(route.convs for route in routes):
            continue
        parts = sites_of(routes)
        refusal = view.refusal(site) or removal_refusal(
            view, parts, [site.name, *(each.name for each in nested)]
        )
        if refusal is None:
            try:
                merged = merge(view, source, [term.coefficient for term in terms], routes)
                return Merge(site, source, (*parts, *nested, site), merged)
            except Inexact as error:
                refusal = str(error)
        reason = reason or refusal
    return None if reason is None else Obstacle(site.name, f"branches not merged: {reason}")


def find_among_others(view: View, site: Site) -> Merge | None:
    """Merge two branches among other summands of ``site``: ``conv_1(x) + y + conv_2(x)``.

    They become one conv in the place of the first, and the sum that added the second is removed.
    """
    terms, nested = terms_of(view, site)
    if not nested or len(terms) < 3 or view.refusal(site):
        return None  # the summands of one sum are neighbours
    for first, second in _pairs(terms):
        step = _pair(view, first, second)
        if step is not None:
            return step
    return None


def _pairs(terms: Sequence[Term]) -> Iterator[tuple[Term, Term]]:
    """The ordered pairs of terms that have a source in common."""
    by_source: dict[str, list[int]] = {}
    for index, term in enumerate(terms):
        for source in term.routes:
            by_source.setdefault(source, []).append(index)
    for index, first in enumerate(terms):
        others = {each for source in first.routes for each in by_source[source]} - {index}
        for other in sorted(others):
            if terms[other].other is not None:
                yield first, terms[other]


def _pair(view: View, first: Term, second: Term) -> Merge | None:
    parent = second.parent
    if parent is first.parent or second.other is None or second.other[1] != 1.0:
        return None  # the rest of the sum must be its other summand alone, unscaled
    if view.is_output(parent.output) or view.other_use(first.value, first.parent.name):
        return None
    for source in common_sources([first, second]):
        routes = [term.routes[source] for term in (first, second)]
        if not routes[0].sites or not any(route.convs for route in routes):
            continue
        parts = sites_of(routes)
        if routes[1].sites and view.other_use(second.value, parent.name):
            continue
        inside = [site for site in parts if site.output not in (first.value, second.value)]
        if removal_refusal(view, inside, [site.name for site in parts]) is not None:
            continue
        if any(view.refusal(site) for site in parts):
            continue
        try:
            merged = merge(view, source, [1.0, second.coefficient / first.coefficient], routes)
        except Inexact:
            continue
        target = routes[0].sites[-1]
        alias = {parent.output: second.other[0]}
        return Merge(target, source, (*parts, parent), merged, alias=alias)
    return None


def terms_of(view: View, site: Site) -> tuple[list[Term], list[Site]]:
    """The summands of a sum and of the sums nested in it, and these nested sums.

    A sum is nested if only this sum, or another nested one, reads it; at most ``MOST_SUMS`` are
    regarded, the nearest first.
    """
    nested = _nested_sums(view, site)
    terms: list[Term] = []

    def collect(total: Site, factor: float) -> None:
        pairs = _summands(total)
        for index, (value, coefficient) in enumerate(pairs):
            if value in nested:
                collect(nested[value], factor * coefficient)
            else:
                other = pairs[1 - index] if len(pairs) == 2 else None
                routes = routes_to(view, value)
                terms.append(Term(value, factor * coefficient, routes, total, other))

    collect(site, 1.0)
    return terms, list(nested.values())


def _nested_sums(view: View, site: Site) -> dict[str, Site]:
    """The sums within a sum that nothing else reads, by their output value; the nearest first."""
    nested: dict[str, Site] = {}
    waiting = deque([site])
    while waiting:
        total = waiting.popleft()
        for value in total.inputs:
            producer = view.producer(value)
            if (
                producer is not None
                and producer.op == "add"
                and not view.refusal(producer)
                and view.other_use(value, total.name) is None
            ):
                if len(nested) == MOST_SUMS:
                    return nested
                nested[value] = producer
                waiting.append(producer)
    return nested


def _summands(site: Site) -> list[tuple[str, float]]:
    coefficients = site.node.attrs.get("coefficients") or (1.0,) * len(site.inputs)
    return list(zip(site.inputs, map(float, coefficients), strict=True))


def common_sources(terms: Sequence[Term]) -> list[str]:
    """The values that every term can be computed from, the nearest first."""
    shared = set(terms[0].routes)
    for term in terms[1:]:
        shared &= term.routes.keys()
        if not shared:
            return []

    def distance(source: str) -> tuple[int, str]:
        return sum(len(term.routes[source].sites) for term in terms), source

    return sorted(shared, key=distance)


def sites_of(routes: Iterable[Route]) -> list[Site]:
    """The sites on the routes, each once: two routes may share some."""
    return list({site.name: site for route in routes for site in route.sites}.values())


def merge(view: View, source: str, coefficients: Sequence[float], routes: Sequence[Route]) -> Conv:
    """The weighted sum of the routes from ``source`` as one conv.

    Raises:
        Inexact: it would not be exact, or would cost more.
    """
    first = first_conv(view, routes)
    axes, before = len(first.kernel), price(view, routes)
    convs = []
    for route, coefficient in zip(routes, coefficients, strict=True):
        conv = as_conv(view, route, first.in_channels, axes, before)
        if coefficient != 1.0:
            conv = fold_affine(conv, Affine(np.array(coefficient), np.zeros(())))
        convs.append(conv)
    merged = add_convs(convs, spatial_size(view, source, axes))
    require_no_costlier(price_of(merged), before)
    return merged
