"""What a policy is given and what it answers: it never sees a weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dacconv.decompositions import Method
from dacconv.decompositions.svd import ChannelSVD
from dacconv.graph.types import Choice, Layer

Spectra = Callable[[str], ChannelSVD]
"""The singular values of a layer by its name; computed when asked for."""


@dataclass(frozen=True, slots=True)
class Times:
    """Measured times in nanoseconds: ``whole`` of the network as it is, and of its layers.

    ``of(layer, rank)`` is that of a layer split to a rank in its fastest form, or as it is
    (None); None where it cannot be measured.
    """

    whole: int
    of: Callable[[Layer, int | None], int | None]


@dataclass(frozen=True, slots=True)
class RankOptions:
    """How ranks are chosen: exactly one of ``rank``, ``ranks``, ``energy``, ``macs``,
    ``params`` and ``latency`` is given.

    ``ranks`` maps a layer's name or glob to its rank. ``energy`` is the share of squared
    singular values to keep; ``energy_over`` says over which channels: ``mean`` or ``max``.
    ``macs``, ``params`` and ``latency`` are budgets: the share of the original's that may be
    left; ``times`` are the measured times that the last one needs. ``damage`` says what a rank
    does to a layer, and ``everything`` are all layers of the network; both are for budgets.
    """

    rank: int | None = None
    ranks: dict[str, int] = field(default_factory=dict)
    energy: float | None = None
    energy_over: str = "mean"
    macs: float | None = None
    params: float | None = None
    latency: float | None = None
    times: Times | None = None
    damage: Callable[[Layer, int], float] | None = None
    everything: tuple[Layer, ...] = ()


Policy = Callable[[Sequence[Layer], Method, RankOptions, Spectra], list[Choice]]
"""Ranks for the selected, eligible layers, in their order; a layer without one is left."""
