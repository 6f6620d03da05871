"""The singular value decomposition of a kernel's unfolding, for formulas of two factors.

For a formula such as ``riy,orx->oiyx`` the kernel is a matrix with the rows ``ox`` and the columns
``iy`` (one matrix for each group and for each value of the letters that both factors share).
Truncated at r, its decomposition is the best split of that rank in the Frobenius norm (Eckart
and Young 1936), and the sum of the discarded squared singular values is the squared error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dacconv.decompositions.formula import F64, KERNEL, Factors, Formula, unfold
from dacconv.graph.types import FloatArray, Rank
from dacconv.support.threads import one_blas_thread

SAFE_RATIO = 1e-9
"""Squared singular values below this share of the largest are lost to rounding in a Gram
matrix of float64 (1e-16 / 1e-9 leaves seven digits)."""


@dataclass(frozen=True, slots=True, eq=False)
class SingularValues:
    """Singular values ``(count, f)`` of a kernel's matrices, descending and not negative."""

    values: F64

    @property
    def full_rank(self) -> Rank:
        """The rank at which the kernel is reproduced."""
        return (int(self.values.shape[1]),)

    def spectra(self) -> tuple[F64, ...]:
        """The values: there is one rank."""
        return (self.values,)

    def energy(self) -> F64:
        """Squared singular values summed over the matrices, shape ``(f,)``."""
        return np.asarray((self.values**2).sum(axis=0))

    def relative_error(self, rank: Rank) -> float:
        """``|T - T_r| / |T|`` in the Frobenius norm; 0 for a kernel of zeros."""
        energy = self.energy()
        total = float(energy.sum())
        return math.sqrt(float(energy[rank[0] :].sum()) / total) if total else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum(SingularValues):
    """The values, and right vectors ``(count, f, columns)`` with orthonormal rows.

    ``count`` is the number of matrices: groups times the sizes of the shared letters. The left
    vectors times the values follow by projecting the kernel on the right ones.
    """

    right: F64
    formula: Formula

    def factors(self, kernel: FloatArray, rank: Rank) -> Factors:
        """Unit vectors in one factor; the other is the projection of the kernel on them."""
        formula = self.formula
        (letter,) = formula.ranks
        rows, columns = formula.unfolding(letter)
        right = self.right[:, : rank[0]]
        matrices = unfold(kernel, formula.shared, rows, columns)
        left = np.matmul(matrices, right.transpose(0, 2, 1))
        sizes = dict(zip("g" + KERNEL, kernel.shape, strict=True)) | {letter: right.shape[1]}
        shared = "g" + formula.shared
        carrier = formula.terms[formula.carrier]
        (unit,) = (t for index, t in enumerate(formula.terms) if index != formula.carrier)
        arrays = {
            carrier: _arranged(left, shared + rows + letter, carrier, sizes),
            unit: _arranged(right, shared + letter + columns, unit, sizes),
        }
        return tuple(arrays[term] for term in formula.terms)


def unfolded_spectrum(formula: Formula, kernel: FloatArray) -> Spectrum:
    """The decomposition of a finite kernel ``(g, o, i, y, x)``, in float64."""
    (letter,) = formula.ranks
    rows, columns = formula.unfolding(letter)
    parts = [_decomposed(matrix) for matrix in unfold(kernel, formula.shared, rows, columns)]
    values, right = (np.stack(each) for each in zip(*parts, strict=True))
    return Spectrum(values, signed(right), formula)


def _decomposed(matrix: F64) -> tuple[F64, F64]:
    """Singular values, descending, and right vectors of one matrix.

    They follow from the eigenvectors of the smaller Gram matrix, which takes a fraction of the time
    of an SVD. Squaring halves the digits of the values, so that a matrix whose values span too much
    for that is decomposed by a true SVD.
    """
    import scipy.linalg

    full = min(matrix.shape)
    is_wide = len(matrix) < matrix.shape[1]
    gram = matrix @ matrix.T if is_wide else matrix.T @ matrix
    with one_blas_thread():
        squared, vectors = scipy.linalg.eigh(gram, check_finite=False, driver="evd")
    squared, vectors = squared[::-1][:full], vectors[:, ::-1][:, :full]
    if squared[-1] <= SAFE_RATIO * squared[0]:
        with one_blas_thread():
            _, values, right = scipy.linalg.svd(matrix, full_matrices=False, check_finite=False)
        return np.asarray(values), np.asarray(right)
    values = np.sqrt(squared)
    right = (vectors.T @ matrix) / values[:, None] if is_wide else vectors.T
    return values, np.ascontiguousarray(right)


def left_vectors(matrix: F64) -> F64:
    """The left singular vectors of a matrix, as columns, in descending order of its values.

    They are the eigenvectors of the Gram matrix, which are orthonormal whatever the values are: a
    projection on all of them loses nothing.
    """
    import scipy.linalg

    if matrix.shape[1] < len(matrix):
        with one_blas_thread():
            vectors, _, _ = scipy.linalg.svd(matrix, full_matrices=False, check_finite=False)
    else:
        gram = matrix @ matrix.T
        with one_blas_thread():
            _, ascending = scipy.linalg.eigh(gram, check_finite=False, driver="evd")
        vectors = ascending[:, ::-1]
    return signed(np.ascontiguousarray(vectors.T)).T


def signed(right: F64) -> F64:
    """Fix the free sign of every vector: its largest entry is positive."""
    largest = np.abs(right).argmax(axis=-1)[..., None]
    signs = np.where(np.take_along_axis(right, largest, axis=-1) < 0, -1.0, 1.0)
    return np.asarray(right * signs)


def _arranged(array: F64, letters: str, term: str, sizes: dict[str, int]) -> F64:
    """An array with the axes ``letters`` (joined or not) as the factor ``(g, *term)``."""
    split = array.reshape([sizes[c] for c in letters])
    return np.ascontiguousarray(split.transpose([letters.index(c) for c in "g" + term]))
