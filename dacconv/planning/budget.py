"""A budget in, ranks out: the least predicted damage within a share of the original's cost.

A layer's options are its splits that save something, by every method, and to be left alone. The
choice is a knapsack over the layers with their real costs, solved exactly (or with the gap stated).
A budget of time is one of measured times: the network is taken to save the sum of what its layers
save one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dacconv.decompositions import Method
from dacconv.decompositions.costs import split_work, with_sizes
from dacconv.decompositions.forms import AUTO
from dacconv.errors import UnsupportedError, UsageError
from dacconv.graph.cost import Cost, layer_cost, shared_cost, total
from dacconv.graph.types import Choice, Geometry, Layer
from dacconv.planning.base import Damage, Evidence, Price, RankOptions, Spectra
from dacconv.planning.knapsack import Option, pack


def macs(layer: Layer, choice: Choice | None) -> int | None:
    """Multiply-adds over all call sites."""
    if not layer.geometries:
        return None
    if choice is None:
        return shared_cost(layer.geometries).macs
    return total(_split_cost(geometry, choice) for geometry in layer.geometries).macs


def params(layer: Layer, choice: Choice | None) -> int | None:
    """Parameters, each weight once; a split layer is counted with the bias that it may get."""
    if not layer.geometries:
        return layer.params
    if choice is None:
        return shared_cost(layer.geometries).params
    return _split_cost(replace(layer.geometry, bias=True), choice).params


BUDGETS: dict[str, Price] = {"macs": macs, "params": params}
"""What can be counted without a measurement. A new one is one function and an option."""


def splits_worth(layer: Layer, method: Method, price: Price = macs) -> list[Choice]:
    """The candidate splits of a layer by a method that cost less than the layer left alone."""
    if layer.skip is not None or method.refuses(layer) is not None:
        return []
    whole = _relative(layer, None, price)
    choices = [Choice(layer.name, method.name, r) for r in method.candidates(layer.geometry)]
    return [choice for choice in choices if _relative(layer, choice, price) < whole]


def budget(
    layers: Sequence[Layer], methods: Sequence[Method], options: RankOptions, evidence: Evidence
) -> list[Choice]:
    """The splits of least damage that keep the whole network within a budget.

    All layers of the network count, those that are not selected as well. Damage is
    ``evidence.damage``, by default the squared relative kernel error.

    Raises:
        UnsupportedError: the cost of the network is not known.
        UsageError: the share cannot be reached, or the times were not measured.
    """
    (kind,) = (name for name in (*BUDGETS, "latency") if getattr(options, name) is not None)
    price, worth = BUDGETS.get(kind, macs), BUDGETS.get(kind, macs)
    if kind == "latency":
        if evidence.times is None:
            raise UsageError("the times of the layers were not measured", where="--latency")
        price, before = evidence.times.of, evidence.times.whole
    else:
        costs = [price(layer, None) for layer in evidence.layers or layers]
        if any(cost is None for cost in costs):
            raise UnsupportedError(
                f"the {kind} of the network are not known, so there is no budget of them",
                hint="give the sizes with --input-shape 1,3,224,224, or use --params",
            )
        before = sum(cost for cost in costs if cost is not None)
    menus = [
        [c for method in methods for c in splits_worth(layer, method, worth)] for layer in layers
    ]
    limit = Limit(kind, _share(getattr(options, kind), f"--{kind}"), before)
    damage = evidence.damage or kernel_damage(evidence.spectra)
    if evidence.faster is not None:
        try:
            return spend(layers, _faster(layers, menus, evidence.faster), price, damage, limit)
        except UsageError:  # out of reach without the slower ones
            pass
    return spend(layers, menus, price, damage, limit)


def _faster(
    layers: Sequence[Layer],
    menus: Sequence[Sequence[Choice]],
    faster: Callable[[Layer, Choice], bool],
) -> list[list[Choice]]:
    """The splits that are predicted to be faster than their layers."""
    return [
        [choice for choice in menu if faster(layer, choice)]
        for layer, menu in zip(layers, menus, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Limit:
    """A budget: ``share`` of the cost ``before`` of the whole network, of the kind ``kind``."""

    kind: str
    share: float
    before: int


def spend(
    layers: Sequence[Layer],
    menus: Sequence[Sequence[Choice]],
    price: Price,
    damage: Damage,
    limit: Limit,
) -> list[Choice]:
    """The choice of least damage from each layer's menu, or none, within the limit.

    Raises:
        UsageError: the limit cannot be reached.
    """
    alone = [price(layer, None) or 0 for layer in layers]
    rest = limit.before - sum(alone)
    entries = [
        [(None, Option(cost, 0.0)), *_options(layer, menu, price, damage, cost)]
        for layer, menu, cost in zip(layers, menus, alone, strict=True)
    ]
    allowed = math.floor(limit.share * limit.before) - rest
    packing = pack([[option for _, option in menu] for menu in entries], allowed)
    if packing is None:
        least = rest + sum(min(option.cost for _, option in menu) for menu in entries)
        raise UsageError(
            f"{limit.share:.1%} of the {limit.kind} cannot be reached: rank 1 everywhere leaves "
            f"{least / limit.before:.1%}",
            where=f"--{limit.kind}",
        )
    note = f"within {packing.gap / packing.damage:.1%} of the least damage" if packing.gap else ""
    picks = [menu[index][0] for menu, index in zip(entries, packing.picks, strict=True)]
    return [replace(choice, note=note) for choice in picks if choice is not None]


def kernel_damage(spectra: Spectra) -> Damage:
    """The squared relative kernel error of a split."""

    def damage(layer: Layer, choice: Choice) -> float:
        return spectra(layer.name, choice.method).relative_error(choice.rank) ** 2

    return damage


def _options(
    layer: Layer, menu: Sequence[Choice], price: Price, damage: Damage, alone: int
) -> list[tuple[Choice | None, Option]]:
    entries: list[tuple[Choice | None, Option]] = []
    for choice in menu:
        cost = price(layer, choice)
        if cost is not None and cost < alone:
            entries.append((choice, Option(cost, max(damage(layer, choice), 0.0))))
    return entries


def _split_cost(geometry: Geometry, choice: Choice) -> Cost:
    convs = split_work(geometry, choice.method, choice.rank, AUTO).convs
    return total(layer_cost(conv) for conv in convs)


def _relative(layer: Layer, choice: Choice | None, price: Price) -> float:
    """The cost, with an output of size 1 where sizes are not known: enough for comparisons."""
    cost = price(layer, choice)
    if cost is not None:
        return cost
    sized = tuple(map(with_sizes, layer.geometries))
    return price(replace(layer, geometries=sized), choice) or math.inf


def _share(value: float, where: str) -> float:
    if isinstance(value, bool) or not 0 < value < 1:
        raise UsageError(
            f"{value} is not a share between 0 and 1",
            where=where,
            hint="0.45 keeps at most 45 % of the original's",
        )
    return float(value)
