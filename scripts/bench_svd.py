"""The decomposition of one kernel against a batched SVD, in turn, and its accuracy.

    .venv/bin/python scripts/bench_svd.py [--rounds 9]

The batched SVD runs with one BLAS thread, which serves it best on matrices this small.
A 512x512x3x3 kernel is to take at most 40 ms on two cores and a 512x512x7x7 one at most
450 ms, with the singular values of the float64 SVD to 1e-5 relative.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import measure
import numpy as np
from threadpoolctl import threadpool_limits

from dacconv.decompositions.svd import channel_svd, left_factors

KERNELS = ((3, 9, 40), (7, 3, 450))
"""Kernel size, share of the rounds in ninths, and the milliseconds that are allowed."""

RANK = 4


def matrices(weight: np.ndarray) -> np.ndarray:
    """``(out, in, kh, kw)`` as one ``(kh * kw, out)`` matrix per input channel."""
    outputs, inputs, *kernel = weight.shape
    return weight.transpose(1, 2, 3, 0).reshape(inputs, int(np.prod(kernel)), outputs)


def milliseconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    measure.title("Decomposition of one kernel, 512 in, 512 out, float32", "numpy")
    rows = []
    for size, share, allowed in KERNELS:
        rng = np.random.default_rng(size)
        weight = rng.standard_normal((512, 512, size, size)).astype(np.float32)
        weight *= rng.uniform(1e-3, 1, (1, 512, size, size)).astype(np.float32)
        stacked = np.ascontiguousarray(matrices(weight))
        ours, factors, theirs = [], [], []
        found = channel_svd(weight)
        right = np.ascontiguousarray(found.right[:, :RANK])
        for turn in range(max(3, options.rounds * share // 9)):
            ours.append(milliseconds(lambda weight=weight: channel_svd(weight)))
            factors.append(milliseconds(lambda w=weight, right=right: left_factors(w, right)))
            with threadpool_limits(1, user_api="blas"):
                theirs.append(milliseconds(lambda a=stacked: np.linalg.svd(a, full_matrices=False)))
            measure.progress(f"{size}x{size}, round {turn + 1}")
        exact = np.linalg.svd(stacked.astype(np.float64), compute_uv=False)
        ratio = [one / other for one, other in zip(ours, theirs, strict=True)]
        rows.append(
            (
                f"512x512x{size}x{size}",
                measure.spread(ours, 0),
                str(allowed),
                measure.spread(factors, 0),
                measure.spread(theirs, 0),
                measure.spread(ratio),
                f"{np.abs(found.values / exact - 1).max():.1e}",
            )
        )
    header = (
        "kernel",
        "SVD, ms",
        "allowed",
        f"pointwise factors at rank {RANK}, ms",
        "batched numpy SVD, ms",
        "ratio",
        "largest relative error of a singular value",
    )
    print(measure.table(header, rows))


if __name__ == "__main__":
    main()
