"""Ranks as the user gives them: the same one everywhere, or one for each named layer."""

from __future__ import annotations

from collections.abc import Sequence

from dacconv.decompositions import Method
from dacconv.graph.types import Choice, Layer
from dacconv.planning.base import Evidence, RankOptions, check_rank, first_method, same_rank
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

    Layers that are not named are left alone.
    """
    ranks: dict[str, int] = {}
    for pattern, rank in options.ranks.items():
        for name in match(pattern, layers, option="--ranks"):
            ranks[name] = check_rank(rank, f"--ranks {pattern}")
    return [_choice(layer, methods, ranks[layer.name]) for layer in layers if layer.name in ranks]


def _choice(layer: Layer, methods: Sequence[Method], rank: int) -> Choice:
    method = first_method(layer, methods)
    return Choice(layer.name, method.name, same_rank(method, rank))
