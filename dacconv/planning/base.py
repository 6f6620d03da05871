"""What a policy is given and what it returns: it never sees a weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from dacconv.decompositions import METHODS, Decomposition, Method
from dacconv.errors import UsageError
from dacconv.graph.types import Choice, Layer, Rank

Spectra = Callable[[str, str], Decomposition]
"""The decomposition of a layer by a method, both by their names; computed on demand."""
Damage = Callable[[Layer, Choice], float]
"""The damage that a split of a layer does, in any unit that adds up over the layers."""
Price = Callable[[Layer, Choice | None], int | None]
"""The cost of a layer that is split, or left alone (None); None where it is not known."""


@dataclass(frozen=True, slots=True)
class Times:
    """Measured times in nanoseconds: ``whole`` of the network as it is, and of its layers.

    ``of(layer, choice)`` is the time of a layer split as the choice says, in its fastest form, or
    as it is (None); None where it cannot be measured.
    """

    whole: int
    of: Price


@dataclass(frozen=True, slots=True)
class RankOptions:
    """How ranks are chosen: exactly one of ``rank``, ``ranks``, ``energy``, ``vbmf``, ``macs``,
    ``params`` and ``latency`` is given.

    ``method`` names decompositions, separated by commas: a budget chooses among them for each
    layer, other policies take the first that can split a layer. ``auto`` are all of them; None is
    ``auto`` within a budget, else ``dac``. ``ranks`` maps a layer's name or glob to its rank, or to
    a text ``METHOD:RANK``. ``energy`` is the share of squared singular values to keep;
    ``energy_over`` says over which channels: ``mean`` or ``max``. ``vbmf`` takes the ranks that
    kernels have beyond noise. ``macs``, ``params`` and ``latency`` are budgets: the share of the
    original's cost that may be left. ``allow_costlier`` splits a layer even where that makes it
    cost more.
    """

    method: str | None = None
    rank: int | None = None
    ranks: dict[str, int | str] = field(default_factory=dict)
    energy: float | None = None
    energy_over: str = "mean"
    vbmf: bool = False
    macs: float | None = None
    params: float | None = None
    latency: float | None = None
    allow_costlier: bool = False

    @property
    def budgeted(self) -> bool:
        """Whether ranks are chosen within a budget."""
        return any(share is not None for share in (self.macs, self.params, self.latency))


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What policies judge a split by.

    ``layers`` are all layers of the network, selected or not. ``spectra`` are their decompositions.
    ``damage`` replaces the squared kernel error as the measure of a split, where it is given;
    ``times`` are the measured times that a budget of time needs. ``faster`` says whether a split is
    predicted to be faster than its layer: a budget takes others only where it must.
    """

    layers: tuple[Layer, ...]
    spectra: Spectra
    damage: Damage | None = None
    times: Times | None = None
    faster: Callable[[Layer, Choice], bool] | None = None


Policy = Callable[[Sequence[Layer], Sequence[Method], RankOptions, Evidence], list[Choice]]
"""Choices for the selected, eligible layers, in their order; a layer without one is left alone.

Of several methods, all but budgets take the first that can split the layer.
"""


def first_method(layer: Layer, methods: Sequence[Method]) -> Method:
    """The first of the methods that can split a layer, or the first of all where none can."""
    return next((method for method in methods if method.refuses(layer) is None), methods[0])


def method_of(name: str, where: str) -> Method:
    """The method of that name; UsageError, with the nearest name, where there is none."""
    if name not in METHODS:
        (nearest,) = get_close_matches(name, METHODS, n=1, cutoff=0.0)
        raise UsageError(
            f"unknown method '{name}'",
            where=where,
            hint=f"the nearest is {nearest}; known: {', '.join(METHODS)}",
        )
    return METHODS[name]


def same_rank(method: Method, rank: int) -> Rank:
    """A rank given as one number: the same number for each rank of the method."""
    return (rank,) * len(method.formula.ranks)


def check_rank(rank: object, where: str) -> int:
    """A whole, positive rank, or a UsageError that says so."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise UsageError(
            f"rank {rank} is not a whole number above 0",
            where=where,
            hint="a rank is the number of terms that each split keeps: 1, 2, 3, ...",
        )
    return rank
