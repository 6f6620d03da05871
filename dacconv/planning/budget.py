"""A budget in, ranks out: the least predicted damage within a share of the original's cost.

A layer's options are its ranks that save something, and to be left alone. The choice is a
knapsack over the layers with their real costs, solved exactly (or with the gap stated).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from dacconv.decompositions import Method
from dacconv.errors import UnsupportedError, UsageError
from dacconv.graph.cost import layer_cost, shared_cost, total
from dacconv.graph.types import Choice, Layer
from dacconv.planning.base import RankOptions, Spectra
from dacconv.planning.knapsack import Option, pack

Price = Callable[[Layer, Method, int | None], int | None]
"""What a layer costs at a rank, or left alone (None); None where that is not known."""


def macs(layer: Layer, method: Method, rank: int | None) -> int | None:
    """Multiply-adds over all call sites."""
    if not layer.geometries:
        return None
    if rank is None:
        return shared_cost(layer.geometries, layer.op).macs
    return total(layer_cost(p) for g in layer.geometries for p in method.parts(g, rank)).macs


def params(layer: Layer, method: Method, rank: int | None) -> int | None:
    """Parameters, each weight once; a split layer is counted with the bias that it may get."""
    if not layer.geometries:
        return layer.params
    if rank is None:
        return shared_cost(layer.geometries, layer.op).params
    biased = replace(layer.geometry, bias=True)
    return total(layer_cost(part) for part in method.parts(biased, rank)).params


BUDGETS: dict[str, Price] = {"macs": macs, "params": params}
"""What a budget can be of. A new one is one function here and an option of its name."""


def ranks_worth(layer: Layer, method: Method, price: Price = macs) -> list[int]:
    """The ranks that cost less than the layer left alone."""
    whole = _relative(layer, method, None, price)
    most = method.full_rank(layer.geometry)
    return [r for r in range(1, most + 1) if _relative(layer, method, r, price) < whole]


def budget(
    layers: Sequence[Layer], method: Method, options: RankOptions, spectra: Spectra
) -> list[Choice]:
    """The ranks of least damage that keep the whole network within its budget.

    ``options.everything`` are all layers of the network, so that those which are not split
    count as well; ``options.damage`` says what a rank does to a layer, by default its squared
    relative kernel error.
    """
    given = [name for name in BUDGETS if getattr(options, name) is not None]
    (kind,) = given
    price = BUDGETS[kind]
    whole = [price(layer, method, None) for layer in options.everything or layers]
    if any(cost is None for cost in whole):
        raise UnsupportedError(
            f"the {kind} of the network are not known, so there is no budget of them",
            hint="give the sizes with --input-shape 1,3,224,224, or use --params",
        )
    return spend(
        layers,
        method,
        price,
        kind=kind,
        share=getattr(options, kind),
        before=sum(cost for cost in whole if cost is not None),
        damage=options.damage or kernel_damage(spectra),
        worth=price,
    )


def spend(
    layers: Sequence[Layer],
    method: Method,
    price: Price,
    *,
    kind: str,
    share: float,
    before: int,
    damage: Callable[[Layer, int], float],
    worth: Price,
) -> list[Choice]:
    """The ranks of least damage at ``share`` of the ``before`` that the whole network costs.

    The ranks to choose from are those that are cheaper by ``worth``.

    Raises:
        UsageError: not a share, or one that cannot be reached.
    """
    share = _share(share, f"--{kind}")
    split = [price(layer, method, None) or 0 for layer in layers]
    allowed = math.floor(share * before) - (before - sum(split))
    menu = [_options(layer, method, price, damage, worth) for layer in layers]
    found = pack([[option for _, option in entries] for entries in menu], allowed)
    if found is None:
        least = before - sum(split) + sum(min(o.cost for _, o in entries) for entries in menu)
        raise UsageError(
            f"{share:.1%} of the {kind} cannot be reached: rank 1 everywhere leaves "
            f"{least / before:.1%}",
            where=f"--{kind}",
        )
    note = f"within {found.gap / found.damage:.1%} of the least damage" if found.gap else ""
    picked = [entries[i][0] for entries, i in zip(menu, found.picks, strict=True)]
    return [
        Choice(layer.name, method.name, rank, note)
        for layer, rank in zip(layers, picked, strict=True)
        if rank is not None
    ]


def _options(
    layer: Layer, method: Method, price: Price, damage: Callable[[Layer, int], float], worth: Price
) -> list[tuple[int | None, Option]]:
    alone = price(layer, method, None) or 0
    entries: list[tuple[int | None, Option]] = [(None, Option(alone, 0.0))]
    for rank in ranks_worth(layer, method, worth):
        cost = price(layer, method, rank)
        if cost is not None and cost < alone:
            entries.append((rank, Option(cost, max(damage(layer, rank), 0.0))))
    return entries


def _relative(layer: Layer, method: Method, rank: int | None, price: Price) -> float:
    """The cost, with sizes of 1 where none are known: comparisons need no more."""
    cost = price(layer, method, rank)
    if cost is not None:
        return cost
    sized = replace(
        layer,
        geometries=tuple(replace(g, output_size=(1,) * len(g.kernel)) for g in layer.geometries),
    )
    return price(sized, method, rank) or math.inf


def kernel_damage(spectra: Spectra) -> Callable[[Layer, int], float]:
    """The squared relative kernel error of a layer at a rank."""
    known: dict[str, Mapping[int, float]] = {}

    def damage(layer: Layer, rank: int) -> float:
        if layer.name not in known:
            found = spectra(layer.name)
            ranks = range(1, found.full_rank + 1)
            known[layer.name] = {r: found.relative_error(r) ** 2 for r in ranks}
        return known[layer.name][rank]

    return damage


def _share(value: float, where: str) -> float:
    if isinstance(value, bool) or not 0 < value < 1:
        raise UsageError(
            f"{value} is not a share between 0 and 1",
            where=where,
            hint="0.45 keeps at most 45 % of the original's",
        )
    return float(value)
