"""Linear routes through the graph: the sites between two values, also as one conv."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dacconv.fusions.links import is_channel_axis, is_vector, spatial_size
from dacconv.fusions.view import Site, View
from dacconv.graph.convs import (
    Inexact,
    Pads,
    average_pool,
    density,
    fold_affine,
    identity,
    pad_input,
    pad_output,
    work,
)
from dacconv.graph.merging import compose, composed_weights
from dacconv.graph.types import LAYER_OPS, Conv

LONGEST_ROUTE = 24
"""A longer branch is not merged as a whole. Consecutive sites that can be merged have become
one site already, so a longer branch is a network of layers that cannot be merged. The limit
keeps the time linear in a network without nonlinearities."""


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """The sites, in order of execution, that lead from the value ``source`` to its end."""

    source: str
    sites: tuple[Site, ...] = ()

    @property
    def convs(self) -> tuple[Site, ...]:
        """The convs among the sites."""
        return tuple(site for site in self.sites if site.op in LAYER_OPS)


@dataclass(frozen=True, slots=True)
class Price:
    """The cost of convs: MACs per position of the source, and the number of weights."""

    macs: float
    weights: int

    def __add__(self, other: Price) -> Price:
        return Price(self.macs + other.macs, self.weights + other.weights)


def routes_to(view: View, value: str) -> dict[str, Route]:
    """Every linear route that ends in ``value``, by source: the empty one, then ever longer ones.

    Other readers of the values on the way do not matter here; :func:`removal_refusal` looks for
    them. A route has at most ``LONGEST_ROUTE`` sites.
    """
    route = Route(value)
    routes = {value: route}
    while len(route.sites) < LONGEST_ROUTE:
        site = view.producer(route.source)
        if site is None or not is_linear(view, site):
            break
        route = Route(site.inputs[0], (site, *route.sites))
        routes[route.source] = route
    return routes


def removal_refusal(view: View, sites: Sequence[Site], readers: Iterable[str]) -> str | None:
    """The reason why the sites cannot all be removed; None where they can.

    ``readers`` are the names of the sites, besides these, that may read their values.
    """
    names = {site.name for site in sites} | set(readers)
    for site in sites:
        if refusal := view.refusal(site):
            return f"{site.title}: {refusal}"
        if reason := view.use_outside(site.output, names):
            return reason
    return None


def is_linear(view: View, site: Site) -> bool:
    """Whether a conv could compute what the site does."""
    if not site.inputs:
        return False
    if site.op == "pool":
        return site.node.attrs.get("kind") == "average"
    if site.op == "pad":
        return view.padding(site).mode == "constant"
    return site.op in LAYER_OPS or site.op in ("affine", "identity")


def first_conv(view: View, routes: Iterable[Route]) -> Conv:
    """The first conv on the routes, whose input channels are those of their source.

    At least one of the routes has a conv.
    """
    return next(view.conv(site) for route in routes for site in route.convs)


def price(view: View, routes: Iterable[Route]) -> Price:
    """The cost of the convs on the routes. Pools are free: they multiply once per window."""
    prices: dict[str, Price] = {}
    for route in routes:
        positions = 1.0
        for site in route.sites:
            if site.op in LAYER_OPS:
                conv = view.conv(site)
                prices[site.name] = Price(positions * work(conv), conv.weight.size)
                positions *= density(conv)
            elif site.op == "pool":
                positions /= math.prod(site.node.attrs["stride"])
    return sum(prices.values(), Price(0.0, 0))


def price_of(conv: Conv) -> Price:
    """The cost of one conv."""
    return Price(work(conv), conv.weight.size)


def require_no_costlier(after: Price, before: Price) -> None:
    """Check that one conv costs no more than the parts that it replaces.

    A depthwise conv and a 1x1 conv, for example, merge into a dense kernel that takes many times
    the work, and so do the factors of a low-rank layer.

    Raises:
        Inexact: it costs more, so that merging is exact but not wanted.
    """
    if after.macs > before.macs * (1 + 1e-9):
        increase = f"{before.macs:,.0f} to {after.macs:,.0f} multiply-adds per input position"
    elif after.weights > before.weights:
        increase = f"{before.weights:,} to {after.weights:,} weights"
    else:
        return
    raise Inexact(f"one conv would cost more: from {increase}")


def as_conv(view: View, route: Route, channels: int, axes: int, budget: Price) -> Conv:
    """The route as one conv with ``axes`` spatial axes and ``channels`` input channels.

    Raises:
        Inexact: it cannot be exact, or an intermediate conv would have more weights than
            ``budget``.
    """
    conv: Conv | None = None
    pads: Pads | None = None  # zeros that the next conv has to pad with
    for site in route.sites:
        if site.op == "identity":
            continue
        if site.op == "pad":
            conv, pads = _padded(view, site, conv, pads, axes)
            continue
        if site.op == "affine":
            conv = identity(channels, axes) if conv is None else conv
            affine = view.affine(site)
            if pads is not None:
                raise Inexact(f"{site.name} acts on a padded border")
            if is_vector(affine) and not is_channel_axis(view, conv, site.output, site.axis):
                raise Inexact(f"{site.name} acts on axis {site.axis}, not on the channels")
            conv = fold_affine(conv, affine)
            continue
        own = view.conv(site) if site.op in LAYER_OPS else pool_conv(view, site, channels, axes)
        if len(own.kernel) != axes:
            raise Inexact("the layers act on different numbers of axes")
        own, pads = own if pads is None else pad_input(pads, own), None
        if conv is not None:
            require_no_costlier(Price(0.0, composed_weights(conv, own)), budget)
        conv = own if conv is None else compose(conv, own)
        channels = own.out_channels
    conv = identity(channels, axes) if conv is None else conv
    return conv if pads is None else pad_output(conv, pads, 0.0)


def _padded(
    view: View, site: Site, conv: Conv | None, pads: Pads | None, axes: int
) -> tuple[Conv | None, Pads | None]:
    """The conv with the padding after it, or the zeros that the next conv has to pad with."""
    padding = view.padding(site)
    if padding.spatial is None or len(padding.spatial) != axes or pads is not None:
        raise Inexact(f"{site.name} pads more than the spatial axes")
    if padding.zeros:
        return conv, padding.spatial
    if conv is None:
        raise Inexact(f"{site.name} pads with something other than zeros")
    return pad_output(conv, padding.spatial, padding.value), None


def pool_conv(view: View, site: Site, channels: int, axes: int) -> Conv:
    """An average pool as a depthwise conv.

    Raises:
        Inexact: no conv computes its border, or the border depends on the size of the input.
    """
    attrs = site.node.attrs
    kernel, stride = tuple(attrs["kernel"]), tuple(attrs["stride"])
    padding = tuple((int(begin), int(end)) for begin, end in attrs["padding"])
    dilation = tuple(attrs.get("dilation") or (1,) * len(kernel))
    if len(kernel) != axes:
        raise Inexact("the layers act on different numbers of axes")
    if attrs.get("auto_pad") in ("SAME_UPPER", "SAME_LOWER") and set(kernel) != {1}:
        raise Inexact(f"{site.name} pads by {attrs['auto_pad']}")
    if attrs.get("divisor_override"):
        raise Inexact(f"{site.name} divides by a number of its own")
    conv = average_pool(
        channels, kernel, stride, padding, dilation=dilation,
        count_include_pad=bool(attrs.get("count_include_pad", False)),
    )  # fmt: skip
    if attrs.get("ceil_mode"):
        _require_whole_windows(view, site, conv)
    return conv


def _require_whole_windows(view: View, site: Site, conv: Conv) -> None:
    sizes = spatial_size(view, site.inputs[0], len(conv.kernel))
    for axis, (k, s, d, pad) in enumerate(
        zip(conv.kernel, conv.stride, conv.dilation, conv.padding, strict=True)
    ):
        size = None if sizes is None else sizes[axis]
        if s > 1 and (size is None or (size + sum(pad) - d * (k - 1) - 1) % s):
            raise Inexact(f"{site.name} rounds its output size up")
