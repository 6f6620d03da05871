from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacconv.calibration import least_squares as reconstruction
from dacconv.calibration.least_squares import (
    STRENGTHS,
    Accumulator,
    best_bias,
    best_strength,
    expand,
    fit,
    fit_leading,
    leading,
    output_error,
    shrunk,
    solve_filters,
    solve_pointwise,
)
from dacconv.decompositions.svd import channel_svd, left_factors

SIZES = st.tuples(st.integers(1, 5), st.integers(2, 6), st.integers(1, 3), st.integers(0, 10**6))


def problem(channels, out, seed, taps=9, samples=400):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((channels * taps, channels * taps)) / 3
    patches = (rng.standard_normal((samples, channels * taps)) @ mixing + 0.3).astype(np.float32)
    weight = rng.standard_normal((out, channels, 3, 3))
    kernel = weight.reshape(out, -1)
    wanted = (patches @ kernel.T + rng.standard_normal(out)).astype(np.float32)
    sums = Accumulator(channels * taps, out)
    for part in np.array_split(np.arange(samples), 3):
        sums.add(patches[part], wanted[part])
    return weight, kernel, sums.moments(), patches, wanted


def split(weight, rank):
    filters = channel_svd(weight).right[:, :rank]
    return filters, left_factors(weight, filters).transpose(1, 0, 2)


@given(SIZES)
@settings(max_examples=30, deadline=None)
def test_the_error_is_that_of_the_samples(sizes):
    channels, out, rank, seed = sizes
    weight, _, moments, patches, wanted = problem(channels, out, seed)
    made = expand(*split(weight, min(rank, out)))
    bias = best_bias(moments, made) + 0.1
    told = output_error(moments, made, bias)
    seen = ((wanted - patches @ made.T - bias) ** 2).mean(0).sum() / wanted.var(0).sum()
    assert told == pytest.approx(seen, rel=1e-3, abs=1e-6)


@given(SIZES)
@settings(max_examples=30, deadline=None)
def test_no_fit_is_worse_than_the_plain_split_on_its_own_samples(sizes):
    channels, out, rank, seed = sizes
    weight, kernel, moments, _, _ = problem(channels, out, seed)
    filters, pointwise = split(weight, min(rank, out))
    plain = expand(filters, pointwise)
    before = output_error(moments, plain, best_bias(moments, plain))
    for sweeps in (0, 3):
        made = fit(moments, kernel, filters, strength=1e-6, sweeps=sweeps)
        after = output_error(moments, made.kernel, made.bias)
        assert after <= before * (1 + 1e-6) + 1e-5
        before = after


@given(SIZES)
@settings(max_examples=20, deadline=None)
def test_the_leading_numbers_are_all_that_the_plain_filters_need(sizes):
    channels, out, rank, seed = sizes
    _, kernel, moments, _, _ = problem(channels, out, seed)
    filters = np.broadcast_to(np.eye(9)[:rank], (channels, rank, 9))
    whole = fit(moments, kernel, filters, strength=1e-2)
    mixed = shrunk(moments, kernel, 1e-2)
    made, bias = fit_leading(mixed, channels, rank)
    np.testing.assert_allclose(made, whole.pointwise.reshape(out, -1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bias, whole.bias, rtol=1e-5, atol=1e-5)
    short = output_error(leading(moments, channels, rank), made, bias)
    assert short == pytest.approx(output_error(moments, whole.kernel, whole.bias), abs=1e-6)
    strength = best_strength(moments, moments, kernel, channels, rank)
    assert strength == STRENGTHS[0]  # on its own samples the weakest does best


@given(SIZES)
@settings(max_examples=20, deadline=None)
def test_endless_shrinking_is_the_plain_split(sizes):
    channels, out, rank, seed = sizes
    weight, kernel, moments, _, _ = problem(channels, out, seed)
    filters, pointwise = split(weight, min(rank, out))
    made = fit(moments, kernel, filters, strength=1e9)
    np.testing.assert_allclose(made.pointwise, pointwise, atol=1e-5)


@given(SIZES)
@settings(max_examples=20, deadline=None)
def test_full_rank_reproduces_the_kernel(sizes):
    channels, _, _, seed = sizes
    weight, kernel, moments, _, _ = problem(channels, 10, seed)
    made = fit(moments, kernel, channel_svd(weight).right, strength=1e-3, sweeps=1)
    np.testing.assert_allclose(made.kernel, kernel, atol=2e-3)  # float32 sums


@given(SIZES, st.sampled_from([9, 30, 10**4]))
@settings(max_examples=30, deadline=None)
def test_each_step_lowers_what_it_solves(sizes, block):
    channels, out, rank, seed = sizes
    weight, kernel, moments, _, _ = problem(channels, out, seed)
    moments = shrunk(moments, kernel, 1e-2)
    weights = np.random.default_rng(seed).random(out) + 0.1

    def loss(filters, pointwise):
        made = expand(filters, pointwise)
        return output_error(moments, made, best_bias(moments, made), weights)

    filters, pointwise = split(weight, min(rank, out))
    first = loss(filters, pointwise)
    pointwise = solve_pointwise(moments, filters)
    second = loss(filters, pointwise)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruction, "BLOCK", block)
        filters = solve_filters(moments, filters, pointwise, weights)
    third = loss(filters, pointwise)
    assert second <= first * (1 + 1e-6) + 1e-9
    assert third <= second * (1 + 1e-5) + 1e-6


def test_dead_inputs_and_silent_outputs_do_no_harm():
    sums = Accumulator(18, 3)
    sums.add(np.zeros((50, 18), np.float32), np.ones((50, 3), np.float32))
    moments = sums.moments()
    weight = np.zeros((3, 2, 3, 3))
    made = fit(moments, weight.reshape(3, -1), channel_svd(weight).right[:, :1], strength=1e-2,
               sweeps=2)  # fmt: skip
    assert np.isfinite(made.kernel).all()
    np.testing.assert_allclose(made.bias, 1)
    assert output_error(moments, made.kernel, made.bias) == 0
