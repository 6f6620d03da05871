"""What a decomposition method is: a formula, and the convs that its factors become."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from dacconv.decompositions.formula import F64, Factors, Formula
from dacconv.decompositions.spectrum import unfolded_spectrum
from dacconv.graph.types import Branches, Conv, FloatArray, Geometry, Layer, Rank, Step

MOST_CANDIDATES = 24
"""Ranks of a layer that a budget chooses from; a longer range is thinned out evenly."""


class Decomposition(Protocol):
    """What is computed once for a kernel; it gives the factors of every rank."""

    @property
    def full_rank(self) -> Rank:
        """The ranks at which the kernel is reproduced."""
        ...

    @property
    def values(self) -> F64 | None:
        """Singular values ``(count, full rank)``; None for a method of several ranks."""
        ...

    def spectra(self) -> tuple[F64, ...]:
        """For each rank letter the singular values ``(count, f)`` of its unfoldings."""
        ...

    def relative_error(self, rank: Rank) -> float:
        """``|T - T_r| / |T|`` in the Frobenius norm; 0 for a kernel of zeros."""
        ...

    def factors(self, kernel: FloatArray, rank: Rank) -> Factors:
        """The factors of a rank of the kernel ``(g, o, i, y, x)`` that was decomposed."""
        ...


@dataclass(frozen=True)
class Method:
    """One way to split a kernel: a value from which all else about it follows.

    ``refuses(layer)`` says why a layer cannot be split so, or None. ``chain(conv, factors)`` gives
    the convs that take the place of ``conv``: see :func:`part`. ``decompose(kernel)`` is given
    where there is a faster way than the singular value decomposition of the formula's unfolding.
    ``forms`` are the names of the forms that its chain can be written in, if there are several.
    """

    name: str
    title: str
    formula: Formula
    refuses: Callable[[Layer], str | None]
    chain: Callable[[Conv, Factors], Branches]
    decompose: Callable[[FloatArray], Decomposition] = field(default=None)  # type: ignore[assignment]
    forms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.decompose is None:
            formula = self.formula
            object.__setattr__(self, "decompose", lambda k: unfolded_spectrum(formula, k))

    def full_rank(self, geometry: Geometry) -> Rank:
        """The smallest ranks at which every kernel of that geometry is reproduced."""
        return self.formula.full_rank(geometry)

    def clip(self, rank: Rank, geometry: Geometry) -> Rank:
        """The rank, no higher than full rank."""
        return tuple(map(min, rank, self.full_rank(geometry)))

    def candidates(self, geometry: Geometry) -> tuple[Rank, ...]:
        """The ranks that a budget chooses from, ascending, at most ``MOST_CANDIDATES``.

        From 32 on they are multiples of 8, which runtimes compute fastest.
        """
        full = self.full_rank(geometry)
        several = len(full) > 1
        steps = min(max(full), MOST_CANDIDATES // 3 if several else MOST_CANDIDATES)
        shares = [(j + 1) / steps for j in range(steps)]
        ranks = [tuple(_rounded(share * r) for r in full) for share in shares]
        if several:  # besides equal shares of all ranks, twice as much of one as of the others
            ranks += [
                tuple(_rounded(share * r / (1 if j == more else 2)) for j, r in enumerate(full))
                for share in shares
                for more in range(len(full))
            ]
        return tuple(sorted({self.clip(rank, geometry) for rank in (*ranks, full)}))

    def recompose(self, conv: Conv, factors: Factors) -> Conv:
        """``conv`` with the kernel that the factors make."""
        weight = self.formula.recompose(factors).reshape(conv.weight.shape)
        return replace(conv, weight=weight)

    def branches(self, convs: Sequence[Conv], factors: Factors) -> tuple[Branches, ...]:
        """The chains that take the place of each call site of a layer, sharing their weights."""
        first, *others = (self.chain(conv, factors) for conv in convs)
        return first, *(_sharing(branches, first) for branches in others)


def part(
    conv: Conv, weight: FloatArray, axes: Sequence[int] = (), *, groups: int = 1, last: bool = False
) -> Conv:
    """A conv of a chain: it keeps stride, padding and dilation of ``conv`` on the given axes.

    On the other axes it is 1 wide, has stride 1 and no padding. With ``last`` it has the bias.
    ``weight`` is ``(out, in / groups, *kernel)``. A part of a transposed conv is a transposed conv
    if it has any of the axes, else a 1x1 conv.
    """
    keeps = [axis in axes for axis in range(len(conv.kernel))]
    transposed = conv.transposed and any(keeps)
    output_padding = conv.output_padding or (0,) * len(keeps)
    return Conv(
        weight=weight,
        bias=conv.bias if last else None,
        stride=tuple(s if keep else 1 for s, keep in zip(conv.stride, keeps, strict=True)),
        padding=tuple(p if keep else (0, 0) for p, keep in zip(conv.padding, keeps, strict=True)),
        dilation=tuple(d if keep else 1 for d, keep in zip(conv.dilation, keeps, strict=True)),
        groups=groups,
        auto_pad=conv.auto_pad if any(keeps) else None,
        pad_mode=conv.pad_mode if any(keeps) else "zeros",
        transposed=transposed,
        output_padding=(
            tuple(p if keep else 0 for p, keep in zip(output_padding, keeps, strict=True))
            if transposed
            else ()
        ),
    )


def pointwise(conv: Conv, factor: FloatArray, *, last: bool = False) -> Conv:
    """A 1x1 conv, or for a linear layer a linear one, of a factor ``(g, out, in)``."""
    groups, out, channels = factor.shape
    weight = factor.reshape(groups * out, channels, *(1 for _ in conv.kernel))
    return part(conv, weight, groups=groups, last=last)


def in_place(conv: Conv, factor: FloatArray, *, last: bool = False) -> Conv:
    """A conv with the kernel, stride, padding and dilation of ``conv`` and other channels.

    ``factor`` is ``(g, out, in, y, x)``.
    """
    groups, out, channels = factor.shape[:3]
    weight = factor.reshape(groups * out, channels, *conv.kernel)
    return part(conv, weight, range(len(conv.kernel)), groups=groups, last=last)


def refuse_pointwise(layer: Layer) -> str | None:
    """Why the kernel of a layer cannot be split along its axes; None where it can be."""
    geometry = layer.geometry
    if layer.op == "linear":
        return "a linear layer: it has no kernel to split (--method lowrank splits its matrix)"
    if geometry.groups > 1 and geometry.groups == geometry.in_channels:
        return "a depthwise conv: it is the cheapest kind already"
    if math.prod(geometry.kernel) == 1:
        return "a 1x1 kernel: there is nothing to split (--method lowrank splits its matrix)"
    return None


def _rounded(rank: float) -> int:
    return max(1, round(rank)) if rank < 32 else 8 * round(rank / 8)


def _sharing(branches: Branches, first: Branches) -> Branches:
    """The branches with the arrays of ``first``, which has the same weights."""
    chains = []
    for chain, model in zip(branches, first, strict=True):
        steps: list[Step] = []
        for step, other in zip(chain, model, strict=True):
            if isinstance(step, Conv) and isinstance(other, Conv):
                steps.append(replace(step, weight=other.weight))
            else:
                steps.append(step)
        chains.append(tuple(steps))
    return tuple(chains)


def placeholder(shape: tuple[int, ...]) -> FloatArray:
    """An array of that shape that holds no data: it stands for its shape alone."""
    return np.broadcast_to(np.zeros((), np.float32), shape)
