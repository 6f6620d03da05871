"""Branches of one input that are added: one conv.

A branch is a chain of convs, BatchNorms, average pools and constant scales, or the input
itself; smaller kernels are embedded in the largest. Sources: ACNet (arXiv 1908.03930, section
3.2), RepVGG (2101.03697, section 3.3), Diverse Branch Block (2103.13425, transforms II, V, VI).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """One summand: a coefficient times a value, and every linear route that leads to it.

    ``parent`` is the sum that reads it, ``other`` what that adds to it and with which
    coefficient; None where it adds more than one thing.
    """

    value: str
    coefficient: float
    routes: tuple[Route, ...]
    parent: Site
    other: tuple[str, float] | None

    def route(self, source: str) -> Route | None:
        """The route from that source, if there is one."""
        return next((route for route in self.routes if route.source == source), None)


def find(view: View, site: Site) -> Merge | Obstacle | None:
    """Merge the branches that the sum ``site`` adds."""
    inner: list[Site] = []
    terms = list(terms_of(view, site, 1.0, inner))
    reason: str | None = None
    for source in common_sources(terms):
        routes = [route for term in terms if (route := term.route(source)) is not None]
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


def terms_of(view: View, site: Site, factor: float, inner: list[Site]) -> Iterator[Term]:
    """The summands; a sum that only this sum reads is taken apart and noted in ``inner``."""
    coefficients = site.node.attrs.get("coefficients") or (1.0,) * len(site.inputs)
    pairs = list(zip(site.inputs, map(float, coefficients), strict=True))
    for index, (value, coefficient) in enumerate(pairs):
        maker = view.maker(value)
        own = factor * coefficient
        if (
            maker is not None
            and maker.op == "add"
            and not view.blocked(maker)
            and view.elsewhere(value, site.name) is None
        ):
            inner.append(maker)
            yield from terms_of(view, maker, own, inner)
        else:
            other = pairs[1 - index] if len(pairs) == 2 else None
            yield Term(value, own, tuple(routes_to(view, value)), site, other)


def common_sources(terms: Sequence[Term]) -> list[str]:
    """The values that every term can be computed from, the nearest first."""
    shared = set.intersection(*({route.source for route in term.routes} for term in terms))

    def distance(source: str) -> tuple[int, str]:
        lengths = (term.route(source) for term in terms)
        return sum(len(route.sites) for route in lengths if route is not None), source

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
