"""What a decomposition method offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dacconv.decompositions.svd import ChannelSVD
from dacconv.graph.types import Conv, FloatArray, Geometry

Branches = tuple[tuple[Conv, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """The weights that replace a kernel, and what they lose.

    ``arrays`` are the method's own, in the order in which ``assemble`` takes them;
    ``relative_error`` is ``|T - T_r| / |T|`` in the Frobenius norm, before the cast to the
    model's dtype.
    """

    arrays: tuple[FloatArray, ...]
    relative_error: float


@dataclass(frozen=True, slots=True)
class Method:
    """One way to split a kernel; pure functions on arrays.

    ``full_rank(geometry)`` is the rank that reproduces the kernel. ``parts(geometry, rank)``
    are the geometries of the convs that replace one conv, for their cost.
    ``decompose(weight)`` is done once per kernel: its singular values price every rank.
    ``factor(weight, svd, rank)`` makes the weights of one rank, and ``assemble(conv,
    factors)`` the sum of chains for one call site, sharing the arrays with other sites.
    ``recompose(branches)`` is that sum as one conv again, with the kernel that is left.
    """

    name: str
    title: str
    full_rank: Callable[[Geometry], int]
    parts: Callable[[Geometry, int], tuple[Geometry, ...]]
    decompose: Callable[[FloatArray], ChannelSVD]
    factor: Callable[[FloatArray, ChannelSVD, int], Factors]
    assemble: Callable[[Conv, Factors], Branches]
    recompose: Callable[[Branches], Conv]
