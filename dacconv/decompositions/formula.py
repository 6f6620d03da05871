"""A split as one formula: the einsum that makes the kernel of its factors.

The letters ``o`` and ``i`` are the output and input channels of one group, ``y`` the first axis of
the kernel and ``x`` all its other axes as one; every other letter is a rank. DAC, for example,
is ``oir,iryx->oiyx``: the kernel is a sum over r of a pointwise factor ``oir`` and filters
``iryx``. A conv with one spatial axis has ``x = 1``; a linear layer has ``y = x = 1``. Every
array has the groups of the conv as its first axis: kernels are ``(g, o, i, y, x)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dacconv.graph.types import FloatArray, Geometry, Rank

F64 = NDArray[np.float64]
Factors = tuple[FloatArray, ...]
"""One array for each term of a formula, ``(g, *letters)``."""

KERNEL = "oiyx"


@dataclass(frozen=True)
class Formula:
    """The terms of ``text``, and what follows from them."""

    text: str

    @cached_property
    def terms(self) -> tuple[str, ...]:
        """The letters of each factor."""
        return tuple(self.text.partition("->")[0].split(","))

    @cached_property
    def ranks(self) -> tuple[str, ...]:
        """The rank letters, in order of their first appearance."""
        letters = dict.fromkeys(letter for term in self.terms for letter in term)
        return tuple(letter for letter in letters if letter not in KERNEL)

    @cached_property
    def carrier(self) -> int:
        """The index of the factor that takes the scale of the output channels.

        The first one with an output channel; all others are made of unit vectors.
        """
        return next(index for index, term in enumerate(self.terms) if "o" in term)

    @cached_property
    def shared(self) -> str:
        """The kernel letters that all factors have: each value of them is a split of its own."""
        return "".join(c for c in KERNEL if all(c in term for term in self.terms))

    @cached_property
    def common(self) -> bool:
        """Whether there is one rank and all outputs weigh the same numbers, ``r`` of them."""
        return len(self.ranks) == 1 and "o" not in self.shared

    @cached_property
    def nested(self) -> bool:
        """Whether the factors of a smaller rank are components of those of a larger one.

        So it is for two factors, where all outputs weigh the same numbers.
        """
        return self.common and len(self.terms) == 2

    @cached_property
    def closed(self) -> bool:
        """Whether one factor has the output channels alone and the other all the rest.

        The kernel is then any matrix ``(o, iyx)`` of that rank.
        """
        carrier, *others = sorted(self.terms, key=lambda term: "o" not in term)
        return self.nested and len(others) == 1 and set(carrier) == {"o", *self.ranks}

    def unfolding(self, rank: str) -> tuple[str, str]:
        """The kernel letters on either side of a rank letter, without the shared ones.

        The rows belong to the one factor that has no other rank letter, the columns to the rest.
        """
        ends = [t for t in self.terms if set(t) - set(KERNEL) == {rank}]
        end = self.terms[self.carrier] if self.terms[self.carrier] in ends else ends[0]
        rows = "".join(c for c in KERNEL if c in end and c not in self.shared)
        return rows, "".join(c for c in KERNEL if c not in rows and c not in self.shared)

    def full_rank(self, geometry: Geometry) -> Rank:
        """The smallest ranks at which every kernel of that geometry can be reproduced.

        A sum of products of more than two vectors needs at most a product for each pair of entries
        of all but the longest.
        """
        sizes = kernel_sizes(geometry)
        if len(self.ranks) == 1 and len(self.terms) > 2:
            lengths = [math.prod(sizes[c] for c in term if c in KERNEL) for term in self.terms]
            return (math.prod(lengths) // max(lengths),)
        sides = [self.unfolding(rank) for rank in self.ranks]
        return tuple(min(math.prod(sizes[c] for c in side) for side in pair) for pair in sides)

    def shapes(self, geometry: Geometry, rank: Rank) -> tuple[tuple[int, ...], ...]:
        """The shape of each factor, groups first."""
        sizes = kernel_sizes(geometry) | dict(zip(self.ranks, rank, strict=True))
        return tuple((geometry.groups, *(sizes[c] for c in term)) for term in self.terms)

    def recompose(self, factors: Sequence[FloatArray]) -> F64:
        """The kernel ``(g, o, i, y, x)`` that the factors make."""
        terms = ",".join(f"g{term}" for term in self.terms)
        product = np.einsum(f"{terms}->g{KERNEL}", *factors, optimize=True)
        return np.asarray(product, np.float64)


def kernel_sizes(geometry: Geometry) -> dict[str, int]:
    """The size of each kernel letter for one group."""
    first, *others = geometry.kernel or (1,)
    return {
        "o": geometry.out_channels // geometry.groups,
        "i": geometry.in_channels // geometry.groups,
        "y": first,
        "x": math.prod(others),
    }


def as_kernel(weight: FloatArray, groups: int) -> FloatArray:
    """A weight ``(out, in / groups, *kernel)`` as ``(g, o, i, y, x)``; a view where possible."""
    out, channels, *kernel = weight.shape
    first, *others = kernel or [1]
    return weight.reshape(groups, out // groups, channels, first, math.prod(others))


def unfold(kernel: FloatArray, shared: str, rows: str, columns: str) -> F64:
    """The kernel ``(g, o, i, y, x)`` as matrices ``(g * shared, rows, columns)`` in float64."""
    order = [0, *(1 + KERNEL.index(c) for c in shared + rows + columns)]
    sizes = dict(zip(KERNEL, kernel.shape[1:], strict=True))
    shape = (
        kernel.shape[0] * math.prod(sizes[c] for c in shared),
        math.prod(sizes[c] for c in rows),
        math.prod(sizes[c] for c in columns),
    )
    return np.ascontiguousarray(kernel.transpose(order).reshape(shape), dtype=np.float64)
