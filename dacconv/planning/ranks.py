"""Ranks as the user gives them: the same one everywhere, or one for each named layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dacconv.decompositions import Method
from dacconv.errors import UsageError
from dacconv.graph.types import Choice, Layer
from dacconv.planning.base import (
    Evidence,
    RankOptions,
    check_rank,
    first_method,
    method_of,
    same_rank,
)
from dacconv.planning.select import match


def uniform(
    layers: Sequence[Layer], methods: Sequence[Method], options: RankOptions, evidence: Evidence
) -> list[Choice]:
    """``options.rank`` for every layer: the paper's DAC."""
    rank = check_rank(options.rank, "--rank")
    return [_choice(layer, methods, rank) for layer in layers]


def per_layer(
    layers: Sequence[Layer], methods: Sequence[Method], options: RankOptions, evidence: Evidence
) -> list[Choice]:
    """``options.ranks`` maps names or globs to ranks; of several that match, the last counts.

    A rank is a number, or a text such as ``spatial:12`` or ``tucker:8x16`` that names the method as
    well. Layers that are not named are left alone.
    """
    ranks: dict[str, int | str] = {}
    for pattern, rank in options.ranks.items():
        for name in match(pattern, layers, option="--ranks"):
            ranks[name] = rank
    return [
        _named_choice(layer, ranks[layer.name], methods) for layer in layers if layer.name in ranks
    ]


def named_methods(ranks: Mapping[str, int | str]) -> list[Method]:
    """The methods that the texts ``METHOD:RANK`` among the ranks name."""
    names = [rank.partition(":")[0] for rank in ranks.values() if isinstance(rank, str)]
    return [method_of(name, "--ranks") for name in names]


def _named_choice(layer: Layer, rank: int | str, methods: Sequence[Method]) -> Choice:
    where = f"--ranks {layer.name}"
    if not isinstance(rank, str):
        return _choice(layer, methods, check_rank(rank, where))
    name, _, text = rank.partition(":")
    method = method_of(name, where)
    numbers = [int(part) if part.isdecimal() else 0 for part in text.split("x")]
    checked = [check_rank(number, where) for number in numbers]
    count = len(method.formula.ranks)
    if len(checked) not in (1, count):
        raise UsageError(f"{name} has {count} ranks, not {len(checked)}", where=where)
    ranks = tuple(checked) if len(checked) == count else same_rank(method, checked[0])
    return Choice(layer.name, name, ranks)


def _choice(layer: Layer, methods: Sequence[Method], rank: int) -> Choice:
    method = first_method(layer, methods)
    return Choice(layer.name, method.name, same_rank(method, rank))
