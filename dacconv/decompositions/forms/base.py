"""What a form is: one way to write a depthwise conv of multiplier r and the conv after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from dacconv.graph.types import Array, Branches, Construct, Conv

Permutation = Callable[[Array], Array]


@dataclass(frozen=True, slots=True, eq=False)
class Reordering:
    """Arrays in another order; the same array in the same order is computed once.

    A weight that several call sites share therefore stays shared, whatever its form.
    """

    results: dict[tuple[int, str], tuple[Array, Array]] = field(default_factory=dict)

    def __call__(self, array: Array, order: str, permute: Permutation) -> Array:
        """``permute(array)``, remembered under the array and the name of the order."""
        key = (id(array), order)
        if key not in self.results:  # the array is kept: its id is valid as long as it lives
            result = permute(array)
            if any(result.strides):  # an array without data stands for a shape alone
                result = np.ascontiguousarray(result)
            self.results[key] = (array, result)
        return self.results[key][1]


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write a chain of a depthwise conv of multiplier r and a pointwise conv.

    ``lower(depthwise, pointwise, rank, reorder)`` gives the branches. The depthwise conv comes
    with its ``rank`` filters per channel side by side (input channel i owns outputs ``i*r`` to
    ``i*r + r-1``) and the pointwise columns in that order; the result is the same function.
    ``needs`` is the construct that the format must be able to write, if any.
    """

    name: str
    title: str
    lower: Callable[[Conv, Conv, int, Reordering], Branches]
    needs: Construct | None = None


def by_rank(weight: Array, rank: int) -> Array:
    """Depthwise filters ``(c * r, 1, *k)`` from channel by channel to rank by rank."""
    split = weight.reshape(-1, rank, *weight.shape[1:])
    return split.swapaxes(0, 1).reshape(weight.shape)


def columns_by_rank(weight: Array, rank: int) -> Array:
    """Pointwise columns ``(n, c * r, 1, ..)`` from channel by channel to rank by rank."""
    split = weight.reshape(len(weight), -1, rank, *weight.shape[2:])
    return split.swapaxes(1, 2).reshape(weight.shape)
