"""CP: a pointwise conv to r channels, a depthwise conv of them, and a pointwise conv.

Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition", arXiv
1412.6553, with both axes of the kernel as one (Astrid and Lee, arXiv 1701.07148): the kernel is a
sum of r products of a vector over the outputs, one over the inputs and a filter. DAC and network
decoupling are the special cases whose inputs or outputs are one channel each.

The factors are found by alternating least squares, which starts from the largest terms of DAC; a
smaller rank starts from the largest terms of a larger one, so that a whole range of them takes
little more than one. A ridge keeps terms from growing against each other (Phan et al., arXiv
2008.05441, on the degeneracy of CP): the squared norms of the terms stay within a few times that of
the kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from dacconv.decompositions.base import Method, in_place, pointwise, refuse_pointwise
from dacconv.decompositions.formula import F64, Factors, Formula
from dacconv.decompositions.svd import ChannelSVD, channel_svd
from dacconv.errors import UnsupportedError
from dacconv.graph.types import Branches, Conv, FloatArray, Rank
from dacconv.support.threads import one_blas_thread

ALTERNATIONS, MOST_WORK = 25, 2 * 10**9
"""The most alternations for the largest rank that saves anything, and their multiply-adds."""
FEW, LESS_WORK = 15, 4 * 10**8
"""The same for the smaller ranks, which start from its largest terms."""
RIDGE = 1e-4
"""The ridge of each solve, as a share of the mean squared norm of the terms."""
EXACT = 1e-9
"""That of the last solve: enough to make it regular."""

Terms = tuple[F64, F64, F64]
"""Vectors ``(o, r)``, ``(i, r)`` and filters ``(taps, r)``."""


@dataclass(frozen=True, slots=True, eq=False)
class CanonicalPolyadic:
    """The terms of a kernel ``(g, o, i, y, x)``, found on demand for each rank.

    ``starts`` are the decompositions by DAC of each group, whose largest terms the alternation
    starts from.
    """

    kernel: FloatArray
    starts: tuple[ChannelSVD, ...]
    values: None = None
    _terms: dict[int, tuple[Terms, ...]] = field(default_factory=dict)

    @property
    def full_rank(self) -> Rank:
        """The rank at which every kernel of that shape is reproduced."""
        sides = _sides(self.kernel)
        return (math.prod(sides) // max(sides),)

    def spectra(self) -> tuple[F64, ...]:
        """Never: a sum of products has no singular values.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "the ranks of cp do not follow from singular values",
            hint="give --rank, --macs or --energy, or another --method",
        )

    def relative_error(self, rank: Rank) -> float:
        """``|T - T_r| / |T|`` in the Frobenius norm; 0 for a kernel of zeros."""
        total = float(np.linalg.norm(self.kernel))
        if rank >= self.full_rank or not total:
            return 0.0
        errors = [
            np.linalg.norm(_tensor(group) - _product(terms))
            for group, terms in zip(self.kernel, self._of(rank[0]), strict=True)
        ]
        return float(np.linalg.norm(errors)) / total

    def factors(self, kernel: FloatArray, rank: Rank) -> Factors:
        """Rows ``(g, r, i)``, filters ``(g, r, y, x)`` and columns ``(g, o, r)``.

        Rows and filters are unit vectors.
        """
        axes = self.kernel.shape[3:]
        rows, filters, columns = [], [], []
        for outputs, inputs, taps in self._of(rank[0]):
            lengths = [np.linalg.norm(each, axis=0) for each in (inputs, taps)]
            safe = [np.where(length > 0, length, 1.0) for length in lengths]
            rows.append((inputs / safe[0]).T)
            filters.append((taps / safe[1]).T.reshape(-1, *axes))
            columns.append(outputs * lengths[0] * lengths[1])
        return np.stack(rows), np.stack(filters), np.stack(columns)

    def _of(self, rank: int) -> tuple[Terms, ...]:
        """The terms of each group; those of the largest rank that saves anything are kept."""
        groups = map(_tensor, self.kernel)
        if (rank,) >= self.full_rank:
            return tuple(map(_exact, groups))
        if rank not in self._terms:
            sides = _sides(self.kernel)
            most = max(1, math.prod(sides) // sum(sides))
            if rank < most:
                pairs = zip(groups, self._of(most), strict=True)
                return tuple(
                    alternated(g, _largest(terms, rank), FEW, LESS_WORK) for g, terms in pairs
                )
            self._terms[rank] = tuple(
                alternated(group, largest_terms(group, start, rank), ALTERNATIONS, MOST_WORK)
                for group, start in zip(groups, self.starts, strict=True)
            )
        return self._terms[rank]


def decompose(kernel: FloatArray) -> CanonicalPolyadic:
    """The decomposition of every group of a finite kernel ``(g, o, i, y, x)``."""
    starts = (channel_svd(group.reshape(*group.shape[:2], -1)) for group in kernel)
    return CanonicalPolyadic(kernel, tuple(starts))


def _tensor(group: FloatArray) -> F64:
    """A kernel ``(o, i, y, x)`` as ``(o, i, taps)``."""
    return np.asarray(group, np.float64).reshape(*group.shape[:2], -1)


def _sides(kernel: FloatArray) -> tuple[int, int, int]:
    return kernel.shape[1], kernel.shape[2], math.prod(kernel.shape[3:])


def largest_terms(tensor: F64, svd: ChannelSVD, rank: int) -> Terms:
    """The largest terms of DAC, whose vectors over the inputs are one channel each.

    ``svd`` is that of ``tensor`` ``(o, i, taps)``. Seeded small terms are added where there are
    fewer.
    """
    order = np.argsort(-svd.values, axis=None, kind="stable")[:rank]
    channel, index = np.unravel_index(order, svd.values.shape)
    taps = svd.right[channel, index].T
    outputs = np.stack([tensor[:, c] @ taps[:, n] for n, c in enumerate(channel)], axis=1)
    inputs = np.zeros((tensor.shape[1], len(order)))
    inputs[channel, np.arange(len(order))] = 1.0
    factors = _balanced([outputs, inputs, taps])
    missing = rank - len(order)
    if missing > 0:
        rng = np.random.default_rng(0)
        scale = 0.1 * float(np.abs(factors[0]).max())
        more = [scale * rng.standard_normal((len(f), missing)) for f in factors]
        factors = [np.hstack(pair) for pair in zip(factors, more, strict=True)]
    return factors[0], factors[1], factors[2]


def _exact(tensor: F64) -> Terms:
    """Terms whose product is the tensor: one for each pair of entries of the two shorter sides."""
    longest = int(np.argmax(tensor.shape))
    first, second = (axis for axis in range(3) if axis != longest)
    a, b = tensor.shape[first], tensor.shape[second]
    factors: dict[int, F64] = {
        longest: np.moveaxis(tensor, longest, 0).reshape(-1, a * b),
        first: np.repeat(np.eye(a), b, axis=1),
        second: np.tile(np.eye(b), (1, a)),
    }
    return factors[0], factors[1], factors[2]


def _largest(terms: Terms, rank: int) -> Terms:
    """The largest of the terms, whose three vectors have the same length."""
    order = np.argsort(-np.linalg.norm(terms[0], axis=0), kind="stable")[:rank]
    return terms[0][:, order], terms[1][:, order], terms[2][:, order]


def alternated(tensor: F64, terms: Terms, steps: int, work: int) -> Terms:
    """The terms after at most ``steps`` alternations of at most ``work`` multiply-adds."""
    rank = terms[0].shape[1]
    steps = min(steps, work // (3 * tensor.size * rank))
    if not steps or not tensor.any():
        return terms
    unfolded = [
        np.ascontiguousarray(
            np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1), np.float32
        )
        for axis in range(3)
    ]

    def solved(axis: int, ridge: float) -> F64:
        first, second = (factors[other] for other in range(3) if other != axis)
        products = (first[:, None] * second[None]).reshape(-1, rank).astype(np.float32)
        right = (unfolded[axis] @ products).astype(np.float64)
        return _solution((first.T @ first) * (second.T @ second), right, ridge)

    factors = list(terms)
    for _ in range(steps):
        for axis in range(3):
            factors[axis] = solved(axis, RIDGE)
        factors = _balanced(factors)
    factors = _balanced([solved(0, EXACT), factors[1], factors[2]])
    return factors[0], factors[1], factors[2]


def _solution(gram: F64, right: F64, ridge: float) -> F64:
    """The least squares solution of ``x gram = right``, with a ridge."""
    import scipy.linalg

    regular = gram.copy()
    regular[np.diag_indices(len(gram))] += ridge * max(float(np.trace(gram)) / len(gram), 1e-300)
    with one_blas_thread():
        factor = scipy.linalg.cho_factor(regular, overwrite_a=True, check_finite=False)
        return np.asarray(scipy.linalg.cho_solve(factor, right.T, check_finite=False).T)


def _balanced(factors: list[F64]) -> list[F64]:
    """The same terms, the three vectors of each with the same length."""
    lengths = [np.maximum(np.linalg.norm(factor, axis=0), 1e-100) for factor in factors]
    mean = np.cbrt(lengths[0]) * np.cbrt(lengths[1]) * np.cbrt(lengths[2])
    return [factor * (mean / length) for factor, length in zip(factors, lengths, strict=True)]


def _product(terms: Terms) -> F64:
    outputs, inputs, taps = terms
    pairs = (inputs[:, None] * taps[None]).reshape(-1, outputs.shape[1])
    return np.asarray(outputs @ pairs.T).reshape(len(outputs), len(inputs), len(taps))


def chain(conv: Conv, factors: Factors) -> Branches:
    """Stride, padding and dilation stay with the depthwise conv, the bias with the last one.

    The first conv has no bias, so that padding after it is exact.
    """
    rows, filters, columns = factors
    groups, rank = filters.shape[:2]
    depthwise = filters.reshape(groups * rank, 1, 1, *filters.shape[2:])
    return (
        (pointwise(conv, rows), in_place(conv, depthwise), pointwise(conv, columns, last=True)),
    )


METHOD = Method(
    name="cp",
    title="pointwise + depthwise + pointwise (CP)",
    formula=Formula("ri,ryx,or->oiyx"),
    refuses=refuse_pointwise,
    chain=chain,
    decompose=decompose,
)
