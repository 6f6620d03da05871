"""The smallest rank that keeps a share of the kernel's energy.

Guo et al., "Network Decoupling: From Regular to Depthwise Separable Convolutions",
arXiv 1808.05517, section 4: the share of the squared singular values that a rank retains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dacconv.decompositions import Decomposition, Method
from dacconv.decompositions.costs import cost_share
from dacconv.decompositions.formula import F64
from dacconv.errors import UsageError
from dacconv.graph.types import Choice, Layer, Rank
from dacconv.planning.base import Evidence, RankOptions, first_method

OVER = ("mean", "max")


def energy(
    layers: Sequence[Layer], methods: Sequence[Method], options: RankOptions, evidence: Evidence
) -> list[Choice]:
    """For each layer the smallest rank whose share reaches ``options.energy``.

    The share is the mean over the input channels, or with ``energy_over="max"`` every
    channel must reach it, so that the most demanding one decides.
    """
    share = options.energy
    if share is None or not 0 < share <= 1:
        raise UsageError(
            f"energy {share} is not a share above 0 and up to 1",
            where="--energy",
            hint="0.95 keeps 95 % of the squared singular values",
        )
    if options.energy_over not in OVER:
        raise UsageError(
            f"'{options.energy_over}' is not one of {', '.join(OVER)}", where="--energy-over"
        )
    choices = []
    for layer in layers:
        method = first_method(layer, methods)
        decomposition = evidence.spectra(layer.name, method.name)
        if decomposition.values is None:
            rank = cheapest_rank(layer, method, decomposition, share)
        else:
            rank = (smallest_rank(decomposition.values, share, options.energy_over),)
        choices.append(Choice(layer.name, method.name, rank))
    return choices


def cheapest_rank(layer: Layer, method: Method, decomposition: Decomposition, share: float) -> Rank:
    """Of the candidate ranks whose kernel keeps ``share`` of its squared norm, the cheapest.

    For a method of several ranks.
    """
    sufficient = [
        rank
        for rank in method.candidates(layer.geometry)
        if 1 - decomposition.relative_error(rank) ** 2 >= share - 1e-12
    ]
    return min(sufficient, key=lambda rank: cost_share(layer.geometry, method.name, rank))


def smallest_rank(values: F64, share: float, over: str = "mean") -> int:
    """The smallest rank whose kept share of ``values`` ``(channels, f)`` reaches ``share``.

    Channels of zeros keep everything at any rank. Rounding is forgiven to one part in 1e12,
    so that a share of 1 asks for no more than the rank that the kernel really has.
    """
    squared = np.cumsum(values**2, axis=1)
    total = squared[:, -1:]
    shares = np.divide(squared, total, out=np.ones_like(squared), where=total > 0)
    curve = shares.mean(axis=0) if over == "mean" else shares.min(axis=0)
    reached = np.flatnonzero(curve >= share - 1e-12)
    return int(reached[0]) + 1 if reached.size else int(values.shape[1])
