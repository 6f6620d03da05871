"""Tucker-2: a pointwise conv, a smaller k x k conv, and a pointwise conv.

Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
Applications", arXiv 1511.06530, section 3.1. The start is the higher-order singular value
decomposition (De Lathauwer et al. 2000): the factors of both sides are the singular vectors of
the kernel's two unfoldings, and the core is the kernel seen through them. All parts stay dense.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dacconv.decompositions.base import Method, in_place, pointwise, refuse_pointwise
from dacconv.decompositions.formula import F64, Factors, Formula
from dacconv.decompositions.spectrum import left_vectors
from dacconv.graph.types import Branches, Conv, FloatArray, Rank


@dataclass(frozen=True, slots=True, eq=False)
class HigherOrderSVD:
    """Orthonormal vectors of both sides and the whole core; a smaller rank is a part of them.

    ``inputs`` is ``(g, s, i)``, ``outputs`` ``(g, o, r)`` and ``core`` ``(g, r, s, y, x)``.
    ``left_out`` is the squared norm that lies outside a rank, ``(s + 1, r + 1)``.
    """

    inputs: F64
    outputs: F64
    core: F64
    left_out: F64
    values: None = None

    @property
    def full_rank(self) -> Rank:
        """The ranks at which the kernel is reproduced."""
        return self.core.shape[2], self.core.shape[1]

    def spectra(self) -> tuple[F64, ...]:
        """The singular values of both unfoldings, the input channels' first.

        Over all groups together, shape ``(1, f)``.
        """
        sides = self.left_out[:, -1], self.left_out[-1]
        return tuple(np.sqrt(np.maximum(-np.diff(side), 0.0))[None] for side in sides)

    def relative_error(self, rank: Rank) -> float:
        """``|T - T_r| / |T|`` in the Frobenius norm; 0 for a kernel of zeros."""
        total = float(self.left_out[0, 0])
        return math.sqrt(float(self.left_out[rank]) / total) if total else 0.0

    def factors(self, kernel: FloatArray, rank: Rank) -> Factors:
        """The vectors and the part of the core of a rank; ``kernel`` is not needed."""
        s, r = rank
        return self.inputs[:, :s], self.core[:, :r, :s], self.outputs[:, :, :r]


def decompose(kernel: FloatArray) -> HigherOrderSVD:
    """The decomposition of every group of a finite kernel ``(g, o, i, y, x)``, in float64."""
    groups = np.asarray(kernel, np.float64)
    out, channels = groups.shape[1:3]
    inputs = np.stack(
        [left_vectors(each.swapaxes(0, 1).reshape(channels, -1)).T for each in groups]
    )
    outputs = np.stack([left_vectors(each.reshape(out, -1)) for each in groups])
    core = np.einsum("goiyx,gor,gsi->grsyx", groups, outputs, inputs, optimize=True)
    energy = np.zeros((inputs.shape[1] + 1, outputs.shape[2] + 1))
    energy[1:, 1:] = np.einsum("grsyx,grsyx->sr", core, core).cumsum(0).cumsum(1)
    left_out = np.maximum(energy[-1, -1] - energy, 0.0)
    left_out[-1, -1] = 0.0
    return HigherOrderSVD(inputs, outputs, core, left_out)


def chain(conv: Conv, factors: Factors) -> Branches:
    """Stride, padding and dilation stay with the conv in the middle, the bias with the last."""
    rows, core, columns = factors
    return ((pointwise(conv, rows), in_place(conv, core), pointwise(conv, columns, last=True)),)


METHOD = Method(
    name="tucker",
    title="pointwise + k x k core + pointwise (Tucker-2)",
    formula=Formula("si,rsyx,or->oiyx"),
    refuses=refuse_pointwise,
    chain=chain,
    decompose=decompose,
)
