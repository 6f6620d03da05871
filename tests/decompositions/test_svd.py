import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacconv.decompositions.svd import channel_matrices, channel_svd, left_factors

SHAPES = st.tuples(
    st.integers(1, 40), st.integers(1, 6), st.sampled_from([(3, 3), (1, 7), (5, 2), (7, 7), (9,)])
)


def spectra(weight: np.ndarray) -> np.ndarray:
    return np.linalg.svd(channel_matrices(weight), compute_uv=False)


@given(SHAPES, st.integers(0, 2**32 - 1), st.sampled_from([np.float32, np.float64, np.float16]))
@settings(max_examples=60, deadline=None)
def test_values_and_filters_are_those_of_an_svd(shape, seed, dtype):
    out, channels, kernel = shape
    weight = np.random.default_rng(seed).standard_normal((out, channels, *kernel)).astype(dtype)
    svd = channel_svd(weight)
    f = min(out, int(np.prod(kernel)))
    assert svd.values.shape == (channels, f)
    assert svd.right.shape == (channels, f, np.prod(kernel))
    np.testing.assert_allclose(svd.values, spectra(weight), rtol=1e-6, atol=1e-12)
    identity = svd.right @ svd.right.transpose(0, 2, 1)
    np.testing.assert_allclose(identity, np.broadcast_to(np.eye(f), identity.shape), atol=1e-10)
    rebuilt = left_factors(weight, svd.right) @ svd.right
    np.testing.assert_allclose(rebuilt, channel_matrices(weight), atol=1e-10)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.floats(1e-12, 1.0))
@settings(max_examples=60, deadline=None)
def test_tiny_and_repeated_singular_values_keep_their_accuracy(seed, repeats, tiny):
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.standard_normal((3, 32, 9)))[0]
    v = np.linalg.qr(rng.standard_normal((3, 9, 9)))[0]
    values = np.sort(np.concatenate([np.ones(repeats), np.full(9 - repeats, tiny)]))[::-1]
    weight = ((u * values) @ v).transpose(1, 0, 2).reshape(32, 3, 3, 3)
    svd = channel_svd(weight)
    np.testing.assert_allclose(svd.values, spectra(weight), rtol=1e-5, atol=1e-15)
    exact = spectra(weight)
    for rank in range(1, 9):
        tail = np.sqrt((exact[:, rank:] ** 2).sum() / (exact**2).sum())
        assert svd.relative_error((rank,)) == pytest.approx(tail, rel=1e-5, abs=1e-15)
        right = svd.right[:, :rank]
        rest = channel_matrices(weight) - left_factors(weight, right) @ right
        measured = np.linalg.norm(rest) / np.linalg.norm(weight)
        assert measured == pytest.approx(tail, rel=1e-5, abs=1e-14)


def test_a_kernel_of_zeros_and_a_zero_channel():
    weight = np.zeros((8, 3, 3, 3), np.float32)
    assert channel_svd(weight).relative_error((1,)) == 0
    weight[:, 1] = np.random.default_rng(0).standard_normal((8, 3, 3))
    svd = channel_svd(weight)
    assert not svd.values[0].any()
    np.testing.assert_allclose(
        left_factors(weight, svd.right) @ svd.right, channel_matrices(weight), atol=1e-12
    )


def test_full_rank_discards_nothing():
    weight = np.random.default_rng(0).standard_normal((5, 4, 3, 3))
    svd = channel_svd(weight)
    assert svd.full_rank == (5,)
    assert svd.relative_error((5,)) == 0
    assert [svd.relative_error((r,)) for r in range(6)] == sorted(
        (svd.relative_error((r,)) for r in range(6)), reverse=True
    )


def test_the_same_kernel_gives_the_same_bytes():
    weight = np.random.default_rng(0).standard_normal((64, 100, 3, 3)).astype(np.float32)
    first, second = channel_svd(weight), channel_svd(weight)
    assert first.right.tobytes() == second.right.tobytes()
    assert first.values.tobytes() == second.values.tobytes()
