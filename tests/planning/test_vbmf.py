"""The rank of a matrix beyond noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacconv.decompositions import METHODS
from dacconv.graph.types import Geometry, Layer
from dacconv.planning import Evidence, RankOptions, Selection
from dacconv.planning.plans import make_plan
from dacconv.planning.vbmf import rank_beyond_noise


def noisy_matrix(seed, rows, columns, rank, noise):
    rng = np.random.default_rng(seed)
    low = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    return low + noise * rng.standard_normal((rows, columns))


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(0, 6), st.sampled_from([40, 80]),
    st.sampled_from([80, 200]), st.floats(0.01, 0.3),
)  # fmt: skip
def test_the_rank_of_a_noisy_matrix_is_recovered(seed, rank, rows, columns, noise):
    values = np.linalg.svd(noisy_matrix(seed, rows, columns, rank, noise), compute_uv=False)
    assert rank_beyond_noise(values, rows, columns) == rank
    assert rank_beyond_noise(1e-6 * values, rows, columns) == rank


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (9, 64), (64, 64)])
def test_any_shape_and_zeros(shape):
    rows, columns = shape
    assert rank_beyond_noise(np.zeros(rows), rows, columns) == 0
    values = np.linalg.svd(noisy_matrix(0, rows, columns, 1, 0.0), compute_uv=False)
    assert 0 <= rank_beyond_noise(values, rows, columns) <= rows


def low_rank_kernel(inputs, outputs):
    """A kernel (48, 32, 3, 3) with Tucker ranks (inputs, outputs) and a little noise."""
    rng = np.random.default_rng(0)
    core = rng.standard_normal((outputs, inputs, 3, 3))
    left, right = rng.standard_normal((48, outputs)), rng.standard_normal((32, inputs))
    kernel = np.einsum("rsyx,or,is->oiyx", core, left, right)
    return kernel + 0.5 * rng.standard_normal(kernel.shape)


@pytest.mark.parametrize(
    ("method", "rank"), [("tucker", (5, 9)), ("channel", (9,)), ("channel-input", (5,))]
)
def test_ranks_of_a_plan(method, rank):
    geometry = Geometry(32, 48, (3, 3), (1, 1), (1, 1), 1, False, (8, 8), (8, 8))
    layer = Layer("conv", "conv", ("conv",), (geometry,), None)
    kernel = low_rank_kernel(5, 9)[None]
    evidence = Evidence((layer,), lambda _, name: METHODS[name].decompose(kernel))
    plan = make_plan(RankOptions(method=method, vbmf=True), Selection(), evidence)
    assert [(c.method, c.rank) for c in plan.choices] == [(method, rank)]


def test_at_least_rank_1():
    geometry = Geometry(32, 48, (3, 3), (1, 1), (1, 1), 1, False, (8, 8), (8, 8))
    layer = Layer("conv", "conv", ("conv",), (geometry,), None)
    kernel = np.random.default_rng(0).standard_normal((1, 48, 32, 3, 3))
    evidence = Evidence((layer,), lambda _, name: METHODS[name].decompose(kernel))
    plan = make_plan(RankOptions(vbmf=True), Selection(), evidence)
    assert [(c.method, c.rank) for c in plan.choices] == [("dac", (1,))]
