"""Singular value decompositions of a kernel, one per input channel.

A kernel ``(out, in, *k)`` is, for each input channel, a matrix of shape ``(out, prod(k))``
(DAC, arXiv 1812.08374, section 3.1). Its right singular vectors are spatial filters; the sum
of its discarded squared singular values is the squared error of a truncation at any rank.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dacconv.decompositions.formula import F64, Factors
from dacconv.decompositions.spectrum import SAFE_RATIO, SingularValues, signed
from dacconv.graph.types import FloatArray, Rank
from dacconv.support.threads import one_blas_thread

T = TypeVar("T")

SLICE = 64
"""Input channels per task: enough to share out evenly, few enough to stay in the cache."""

BLOCK = 72
"""Rows of the block diagonal matrices of :func:`left_factors`, where a kernel has fewer taps."""


@dataclass(frozen=True, slots=True, eq=False)
class ChannelSVD(SingularValues):
    """The factors of one kernel ``(out, in, *k)``; ``f = min(out, prod(k))`` is full rank.

    ``values`` has shape ``(in, f)``, ``right`` ``(in, f, prod(k))`` with orthonormal rows: the
    spatial filters of each input channel. The left vectors times the values follow from them,
    see :func:`left_factors`. The input channels of all groups follow each other.
    """

    right: F64

    def factors(self, kernel: FloatArray, rank: Rank) -> Factors:
        """Pointwise columns ``(g, out, in, r)`` and unit filters ``(g, in, r, y, x)``.

        ``kernel`` ``(g, out, in, y, x)`` is the one that was decomposed.
        """
        groups, out, channels, *taps = kernel.shape
        filters = self.right[:, : rank[0]]
        count = filters.shape[1]
        parts = [
            left_factors(group.reshape(out, channels, -1), own).transpose(1, 0, 2)
            for group, own in zip(kernel, np.split(filters, groups), strict=True)
        ]
        columns = np.stack(parts) if groups > 1 else parts[0][None]
        columns = np.ascontiguousarray(columns)
        return columns, np.ascontiguousarray(filters).reshape(groups, channels, count, *taps)


def channel_matrices(weight: FloatArray) -> F64:
    """The kernel ``(out, in, *k)`` as float64 matrices ``(in, out, prod(k))``."""
    out, channels = weight.shape[:2]
    matrices = weight.reshape(out, channels, -1).transpose(1, 0, 2)
    return np.ascontiguousarray(matrices, dtype=np.float64)


def channel_svd(weight: FloatArray) -> ChannelSVD:
    """The SVD of every input channel of a finite kernel ``(out, in, *k)``, in float64.

    The right vectors of a tall matrix are the eigenvectors of its small Gram matrix, which
    is several times cheaper than an SVD. Squaring halves the digits, so the channels whose
    singular values span too much for that are decomposed by a true SVD instead.
    """
    wide = math.prod(weight.shape[2:]) > weight.shape[0]
    parts = _by_channels(_true_svd if wide else _gram_svd, weight)
    return ChannelSVD(
        np.concatenate([values for values, _ in parts]),
        np.concatenate([right for _, right in parts]),
    )


def left_factors(weight: FloatArray, right: F64) -> F64:
    """Left vectors times singular values for ``right`` ``(in, r, prod(k))``.

    Shape ``(in, out, r)``, laid out as ``(out, in, r)``, the order of a pointwise weight. It is
    the projection of the kernel onto the filters, hence the best pointwise factor for them,
    whatever rounding they carry.
    """
    channels, rank, taps = right.shape
    left = np.empty((len(weight), channels, rank)).transpose(1, 0, 2)
    group = max(1, BLOCK // taps)

    def project(weight: FloatArray, right: F64, left: F64) -> None:
        for start in range(0, len(right), group):
            filters = right[start : start + group]
            # a few channels at once, by a block diagonal matrix: the kernel stays as it lies
            diagonal = np.zeros((len(filters), taps, len(filters), rank))
            for index, each in enumerate(filters):
                diagonal[index, :, index] = each.T
            block = weight[:, start : start + group].reshape(len(weight), -1)
            product = block.astype(np.float64) @ diagonal.reshape(block.shape[1], -1)
            left[start : start + group] = product.reshape(len(weight), -1, rank).transpose(1, 0, 2)

    _by_channels(project, weight, right, left)
    return left


def _gram_svd(weight: FloatArray) -> tuple[F64, F64]:
    matrices = channel_matrices(weight)
    squared, vectors = np.linalg.eigh(np.matmul(matrices.transpose(0, 2, 1), matrices))
    values = np.sqrt(np.clip(squared[:, ::-1], 0.0, None))
    right = signed(vectors[:, :, ::-1].transpose(0, 2, 1))
    unsafe = np.flatnonzero(squared[:, 0] <= SAFE_RATIO * squared[:, -1])
    if unsafe.size:
        values[unsafe], right[unsafe] = _true_svd(weight[:, unsafe])
    return values, right


def _true_svd(weight: FloatArray) -> tuple[F64, F64]:
    _, values, right = np.linalg.svd(channel_matrices(weight), full_matrices=False)
    return np.asarray(values), signed(right)


def _by_channels(function: Callable[..., T], weight: FloatArray, *more: F64) -> list[T]:
    """``function`` on slices of the input channels, in threads; ``more`` is indexed alike.

    numpy's batched linear algebra uses one core and releases the interpreter lock; BLAS's
    own threads only get in the way of matrices this small.
    """
    bounds = range(0, weight.shape[1], SLICE)
    with one_blas_thread():
        if len(bounds) == 1:
            return [function(weight, *more)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            tasks = [
                pool.submit(function, weight[:, i : i + SLICE], *(m[i : i + SLICE] for m in more))
                for i in bounds
            ]
            return [task.result() for task in tasks]
