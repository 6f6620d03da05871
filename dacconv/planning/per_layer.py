"""A rank for each named layer; layers that are not named are left alone."""

from __future__ import annotations

from collections.abc import Sequence

from dacconv.decompositions import Method
from dacconv.graph.types import Choice, Layer
from dacconv.planning.base import RankOptions, Spectra
from dacconv.planning.select import match
from dacconv.planning.uniform import check_rank


def per_layer(
    layers: Sequence[Layer], method: Method, options: RankOptions, spectra: Spectra
) -> list[Choice]:
    """``options.ranks`` maps names or globs to ranks; of several that match, the last wins."""
    ranks: dict[str, int] = {}
    for pattern, rank in options.ranks.items():
        for name in match(pattern, layers, option="--ranks"):
            ranks[name] = check_rank(rank, f"--ranks {pattern}")
    return [
        Choice(layer.name, method.name, ranks[layer.name])
        for layer in layers
        if layer.name in ranks
    ]
