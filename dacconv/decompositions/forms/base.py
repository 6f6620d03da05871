"""What a form is: one way to write a depthwise conv of multiplier r and the conv after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from dacconv.graph.types import Array, Conv, Geometry

Chain = tuple[Conv, ...]
Branches = tuple[Chain, ...]
Permutation = Callable[[Array], Array]


@dataclass(frozen=True, slots=True, eq=False)
class Spelled:
    """Arrays in another order; the same array in the same order is made once.

    So a weight that several call sites share stays shared, whatever form they have.
    """

    made: dict[tuple[int, str], tuple[Array, Array]] = field(default_factory=dict)

    def __call__(self, array: Array, order: str, way: Permutation) -> Array:
        """``way(array)``, remembered under the array and the name of the order."""
        key = (id(array), order)
        if key not in self.made:  # the array is kept: its id is good for as long as it lives
            self.made[key] = (array, np.ascontiguousarray(way(array)))
        return self.made[key][1]


@dataclass(frozen=True, slots=True)
class Form:
    """One emission. ``lower(depthwise, pointwise, rank, spelled)`` gives the sum of chains.

    The depthwise conv comes with its ``rank`` filters per channel side by side (input channel i
    owns outputs ``i*r .. i*r + r-1``) and the pointwise columns in that order; what comes out is
    the same function. ``operators(rank)`` is how many operators a runtime sees, ``convs`` the
    geometries of what ``lower`` makes, and ``around(rank, read, middle, written)`` how many values
    are moved besides: copied, joined or added, where the layer reads, keeps between its two
    convs and writes so many.
    """

    name: str
    title: str
    lower: Callable[[Conv, Conv, int, Spelled], Branches]
    operators: Callable[[int], int]
    convs: Callable[[Geometry, Geometry, int], tuple[Geometry, ...]]
    around: Callable[[int, int, int, int], int]


def plain(depthwise: Geometry) -> Geometry:
    """The geometry of a depthwise conv with one filter per channel instead of several."""
    return replace(depthwise, out_channels=depthwise.in_channels)


def by_rank(weight: Array, rank: int) -> Array:
    """Depthwise filters ``(c * r, 1, *k)`` from channel by channel to rank by rank."""
    split = weight.reshape(-1, rank, *weight.shape[1:])
    return split.swapaxes(0, 1).reshape(weight.shape)


def columns_by_rank(weight: Array, rank: int) -> Array:
    """Pointwise columns ``(n, c * r, 1, ..)`` from channel by channel to rank by rank."""
    split = weight.reshape(len(weight), -1, rank, *weight.shape[2:])
    return split.swapaxes(1, 2).reshape(weight.shape)
