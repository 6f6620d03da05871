"""CP: the alternation, its bounds and its cost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacconv.decompositions import METHODS
from dacconv.decompositions.costs import cost_share
from dacconv.decompositions.cp import MOST_WORK, _product, alternated, largest_terms
from dacconv.decompositions.svd import channel_svd
from dacconv.errors import UnsupportedError
from dacconv.graph.types import Geometry

CP, DAC = METHODS["cp"], METHODS["dac"]


def smooth_kernel(seed, out=24, channels=16):
    """A kernel (1, out, channels, 3, 3) with the decaying spectra of a trained one."""
    rng = np.random.default_rng(seed)
    terms = np.arange(1, 201) ** -0.7
    factors = (rng.standard_normal((200, n)) for n in (out, channels, 9))
    return np.einsum("r,ro,ri,rk->oik", terms, *factors).reshape(1, out, channels, 3, 3)


@given(st.integers(0, 2**32 - 1), st.integers(1, 143))
@settings(max_examples=15, deadline=None)
def test_the_error_is_that_of_the_factors(seed, rank):
    kernel = smooth_kernel(seed)
    decomposition = CP.decompose(kernel)
    rebuilt = CP.formula.recompose(decomposition.factors(kernel, (rank,)))
    error = np.linalg.norm(rebuilt - kernel) / np.linalg.norm(kernel)
    assert decomposition.relative_error((rank,)) == pytest.approx(error, rel=1e-6, abs=1e-9)


@given(st.integers(0, 2**32 - 1), st.sampled_from([8, 24, 48]))
@settings(max_examples=15, deadline=None)
def test_fewer_terms_than_dac_needs(seed, rank):
    (kernel,) = smooth_kernel(seed)
    tensor = kernel.reshape(24, 16, 9)
    start = largest_terms(tensor, channel_svd(tensor), rank)
    end = alternated(tensor, start, 25, MOST_WORK)
    assert np.linalg.norm(tensor - _product(end)) < 0.95 * np.linalg.norm(tensor - _product(start))


@given(st.integers(0, 2**32 - 1), st.sampled_from([8, 24, 48, 96]))
@settings(max_examples=15, deadline=None)
def test_terms_do_not_grow_against_each_other(seed, rank):
    kernel = smooth_kernel(seed)
    rows, filters, columns = CP.decompose(kernel).factors(kernel, (rank,))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=2), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(filters.reshape(1, rank, 9), axis=2), 1, rtol=1e-6)
    assert (columns**2).sum() < 20 * (kernel**2).sum()


def test_less_error_than_dac_at_equal_cost():
    kernel = smooth_kernel(0, 48, 48)
    geometry = Geometry(48, 48, (3, 3), (1, 1), (1, 1), 1, False, (8, 8), (8, 8))
    share = cost_share(geometry, "dac", (3,))
    ranks = [r for r in CP.candidates(geometry) if cost_share(geometry, "cp", r) <= share]
    ours = CP.decompose(kernel).relative_error(ranks[-1])
    assert ours < 0.9 * DAC.decompose(kernel).relative_error((3,))


@pytest.mark.parametrize("shape", [(1, 4, 3, 3, 3), (2, 3, 4, 1, 5), (1, 2, 9, 3, 3)])
def test_full_rank_is_exact_and_more_is_no_better(shape):
    kernel = np.random.default_rng(0).standard_normal(shape)
    decomposition = CP.decompose(kernel)
    sides = sorted([shape[1], shape[2], shape[3] * shape[4]])
    assert decomposition.full_rank == (sides[0] * sides[1],)
    rebuilt = CP.formula.recompose(decomposition.factors(kernel, decomposition.full_rank))
    np.testing.assert_allclose(rebuilt, kernel, atol=1e-12)


def test_a_kernel_of_zeros_and_one_too_large_to_alternate():
    zeros = np.zeros((1, 4, 4, 3, 3))
    decomposition = CP.decompose(zeros)
    assert decomposition.relative_error((3,)) == 0
    assert not CP.formula.recompose(decomposition.factors(zeros, (3,))).any()
    tensor = np.random.default_rng(0).standard_normal((8, 8, 9))
    start = largest_terms(tensor, channel_svd(tensor), 5)
    wide = np.broadcast_to(tensor[:, :, None], (8, 8, MOST_WORK, 9))  # of that size, without bytes
    assert alternated(wide, start, 25, MOST_WORK) is start


def test_no_rank_follows_from_singular_values():
    with pytest.raises(UnsupportedError, match="singular values"):
        CP.decompose(np.ones((1, 2, 2, 3, 3))).spectra()
