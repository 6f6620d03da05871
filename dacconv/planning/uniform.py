"""The same rank everywhere: the paper's DAC."""

from __future__ import annotations

from collections.abc import Sequence

from dacconv.decompositions import Method
from dacconv.errors import UsageError
from dacconv.graph.types import Choice, Layer
from dacconv.planning.base import RankOptions, Spectra


def uniform(
    layers: Sequence[Layer], method: Method, options: RankOptions, spectra: Spectra
) -> list[Choice]:
    """``options.rank`` for every layer."""
    rank = check_rank(options.rank, "--rank")
    return [Choice(layer.name, method.name, rank) for layer in layers]


def check_rank(rank: object, where: str) -> int:
    """A whole, positive rank, or a UsageError that says so."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise UsageError(
            f"rank {rank} is not a whole number above 0",
            where=where,
            hint="a rank counts the spatial filters kept per input channel: 1, 2, 3, ...",
        )
    return rank
