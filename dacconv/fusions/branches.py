"""Branches of one input that are added: one conv.

A branch is a chain of convs, BatchNorms, average pools and constant scales, or the input
itself; smaller kernels are embedded in the largest. Sources: ACNet (arXiv 1908.03930, section
3.2), RepVGG (2101.03697, section 3.3), Diverse Branch Block (2103.13425, transforms II, V, VI).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dacconv.fusions.routes import (
    Route,
    as_conv,
    first_conv,
    price,
    price_of,
    require_no_costlier,
    routes_to,
    why_open,
)
from dacconv.fusions.view import Merge, Obstacle, Site, View
from dacconv.fusions.walk import spatial_size
from dacconv.graph.convs import Inexact, fold_affine
from dacconv.graph.merging import add_convs
from dacconv.graph.types import Affine, Conv

MOST_SUMS = 24
"""Sums of sums are looked at together up to this number of sums: the branches of a longer one
are merged as they are added, two at a time. The limit keeps the time linear."""


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """One summand: a coefficient times a value, and the linear routes that lead to it, by source.

    ``parent`` is the sum that reads it, ``other`` what that adds to it and with which
    coefficient; None where it adds more than one thing.
    """

    value: str
    coefficient: float
    routes: Mapping[str, Route]
    parent: Site
    other: tuple[str, float] | None


def find(view: View, site: Site) -> Merge | Obstacle | None:
    """Merge the branches that the sum ``site`` adds."""
    terms, inner = terms_of(view, site)
    reason: str | None = None
    for source in common_sources(terms):
        routes = [term.routes[source] for term in terms]
        if not any(route.convs for route in routes):
            continue
        parts = sites_of(routes)
        refused = view.blocked(site) or why_open(
            view, parts, [site.name, *(each.name for each in inner)]
        )
        if refused is None:
            try:
                merged = merge(view, source, [term.coefficient for term in terms], routes)
                return Merge(site, source, (*parts, *inner, site), merged)
            except Inexact as refusal:
                refused = str(refusal)
        reason = reason or refused
    return None if reason is None else Obstacle(site.name, f"branches not merged: {reason}")


def terms_of(view: View, site: Site) -> tuple[list[Term], list[Site]]:
    """The summands of a sum, and the sums within it that were taken apart for them.

    These are the sums that only this sum, or one of them, reads; at most ``MOST_SUMS`` of them,
    the nearest first.
    """
    inner = _inner_sums(view, site)
    terms: list[Term] = []

    def collect(total: Site, factor: float) -> None:
        pairs = _summands(total)
        for index, (value, coefficient) in enumerate(pairs):
            if value in inner:
                collect(inner[value], factor * coefficient)
            else:
                other = pairs[1 - index] if len(pairs) == 2 else None
                routes = routes_to(view, value)
                terms.append(Term(value, factor * coefficient, routes, total, other))

    collect(site, 1.0)
    return terms, list(inner.values())


def _inner_sums(view: View, site: Site) -> dict[str, Site]:
    """The sums within a sum that nothing else reads, by their values; the nearest first."""
    inner: dict[str, Site] = {}
    waiting = deque([site])
    while waiting:
        total = waiting.popleft()
        for value in total.inputs:
            maker = view.maker(value)
            if (
                maker is not None
                and maker.op == "add"
                and not view.blocked(maker)
                and view.elsewhere(value, total.name) is None
            ):
                if len(inner) == MOST_SUMS:
                    return inner
                inner[value] = maker
                waiting.append(maker)
    return inner


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
