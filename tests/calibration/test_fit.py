"""Fits to second moments, for every formula: against samples, the plain split, and full rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacconv.calibration.fit import (
    STRENGTHS,
    Fit,
    best_strength,
    fit,
    fits_of_ranks,
    kernel_matrix,
    regressors,
    solve_carrier,
    solve_factor,
    unit,
    with_best_carrier,
)
from dacconv.calibration.moments import Accumulator, best_bias, output_error, shrink
from dacconv.decompositions import METHODS
from dacconv.decompositions.formula import as_kernel

SIZES = st.tuples(st.integers(1, 5), st.integers(2, 6), st.integers(1, 3), st.integers(0, 10**6))
EVERY = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))


def problem(channels, out, seed, taps=9, samples=400):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((channels * taps, channels * taps)) / 3
    patches = (rng.standard_normal((samples, channels * taps)) @ mixing + 0.3).astype(np.float32)
    weight = rng.standard_normal((out, channels, 3, 3))
    kernel = weight.reshape(out, -1)
    outputs = (patches @ kernel.T + rng.standard_normal(out)).astype(np.float32)
    sums = Accumulator(channels * taps, out)
    for part in np.array_split(np.arange(samples), 3):
        sums.add(patches[part], outputs[part])
    return weight, kernel, sums.moments(), patches, outputs


def split(method, weight, rank):
    kernel = as_kernel(weight, 1)
    decomposition = method.decompose(kernel)
    return decomposition.factors(kernel, tuple(min(rank, r) for r in decomposition.full_rank))


def error(method, moments, factors):
    kernel = kernel_matrix(method.formula, factors)
    return output_error(moments, kernel, best_bias(moments, kernel))


@EVERY
@given(SIZES)
@settings(max_examples=20, deadline=None)
def test_the_error_is_that_of_the_samples(method, sizes):
    channels, out, rank, seed = sizes
    weight, _, moments, patches, outputs = problem(channels, out, seed)
    kernel = kernel_matrix(method.formula, split(method, weight, rank))
    bias = best_bias(moments, kernel) + 0.1
    measured = ((outputs - patches @ kernel.T - bias) ** 2).mean(0).sum() / outputs.var(0).sum()
    assert output_error(moments, kernel, bias) == pytest.approx(measured, rel=1e-3, abs=1e-6)


@EVERY
@given(SIZES)
@settings(max_examples=20, deadline=None)
def test_the_error_is_the_same_in_the_numbers_that_the_carrier_weighs(method, sizes):
    channels, out, rank, seed = sizes
    weight, kernel, moments, _, _ = problem(channels, out, seed)
    factors = split(method, weight, rank)
    ((_, told),) = fits_of_ranks(
        method.formula, moments, moments, kernel, [Fit(factors, np.zeros(out))]
    )
    alone = fit(method.formula, moments, kernel, factors, strength=STRENGTHS[0], sweeps=0)
    assert told == pytest.approx(error(method, moments, alone.factors), rel=1e-4, abs=1e-6)
    if method.formula.nested and not method.formula.closed:
        seen = regressors(method.formula, moments, kernel, factors).shrunk(STRENGTHS[0])
        fitted = solve_carrier(method.formula, seen, factors)
        assert told == pytest.approx(error(method, moments, fitted), rel=1e-4, abs=1e-6)


@EVERY
@given(SIZES)
@settings(max_examples=20, deadline=None)
def test_no_fit_is_worse_than_the_plain_split_on_its_own_samples(method, sizes):
    channels, out, rank, seed = sizes
    weight, kernel, moments, _, _ = problem(channels, out, seed)
    factors = split(method, weight, rank)
    before = error(method, moments, factors)
    for sweeps in (0, 3):
        result = fit(method.formula, moments, kernel, factors, strength=1e-6, sweeps=sweeps)
        after = output_error(moments, kernel_matrix(method.formula, result.factors), result.bias)
        assert after <= before * (1 + 1e-4) + 1e-5
        before = after


@EVERY
@given(SIZES)
@settings(max_examples=20, deadline=None)
def test_the_fits_of_all_ranks_at_once_are_those_of_each(method, sizes):
    channels, out, _, seed = sizes
    weight, kernel, moments, _, _ = problem(channels, out, seed)
    plain = [Fit(split(method, weight, rank), np.zeros(out)) for rank in (1, 2, 3)]
    together = fits_of_ranks(method.formula, moments, moments, kernel, plain)
    strength = best_strength(method.formula, moments, moments, kernel, plain[1].factors)
    for start, (result, told) in zip(plain, together, strict=True):
        alone = fit(method.formula, moments, kernel, start.factors, strength=strength, sweeps=0)
        before = output_error(moments, kernel_matrix(method.formula, start.factors), start.bias)
        after = error(method, moments, alone.factors)
        assert told == pytest.approx(min(before, after), rel=1e-4, abs=1e-5)
        assert [f.shape for f in result.factors] == [f.shape for f in start.factors]
    if method.formula.nested:  # by conjugate gradients a stronger one may come further
        strength = best_strength(method.formula, moments, moments, kernel, plain[0].factors)
        weakest, best = (
            error(method, moments, fit(method.formula, moments, kernel, plain[0].factors,
                                       strength=s, sweeps=0).factors)
            for s in (STRENGTHS[0], strength)
        )  # fmt: skip
        assert weakest == pytest.approx(best, rel=1e-4, abs=1e-9)  # on its own samples


@EVERY
@given(SIZES)
@settings(max_examples=15, deadline=None)
def test_endless_shrinking_is_the_plain_split(method, sizes):
    channels, out, rank, seed = sizes
    weight, kernel, moments, _, _ = problem(channels, out, seed)
    factors = split(method, weight, rank)
    result = fit(method.formula, moments, kernel, factors, strength=1e9, sweeps=0)
    before, after = (kernel_matrix(method.formula, f) for f in (factors, result.factors))
    if len(method.formula.ranks) == 1:
        np.testing.assert_allclose(after, before, atol=1e-5)
    else:  # the start of several ranks is not the best kernel of these ranks
        assert np.square(after - kernel).sum() <= np.square(before - kernel).sum() + 1e-5


@EVERY
@given(SIZES)
@settings(max_examples=15, deadline=None)
def test_full_rank_reproduces_the_kernel(method, sizes):
    channels, _, _, seed = sizes
    weight, kernel, moments, _, _ = problem(channels, 10, seed)
    factors = split(method, weight, 10**6)
    result = fit(method.formula, moments, kernel, factors, strength=1e-3, sweeps=1)
    remaining = kernel_matrix(method.formula, result.factors)
    np.testing.assert_allclose(remaining, kernel, atol=5e-3)  # float32 sums


@EVERY
@given(SIZES)
@settings(max_examples=20, deadline=None)
def test_each_step_lowers_what_it_solves(method, sizes):
    channels, out, rank, seed = sizes
    weight, kernel, moments, _, _ = problem(channels, out, seed)
    formula, mixed = method.formula, shrink(moments, kernel, 1e-2)
    factors = split(method, weight, rank)
    first = error(method, mixed, factors)
    factors = with_best_carrier(formula, mixed, factors)
    second = error(method, mixed, factors)
    assert second <= first * (1 + 1e-6) + 1e-9
    for index in range(len(formula.terms)):
        factors = solve_factor(formula, mixed, factors, index)
        third = error(method, mixed, factors)
        assert third <= second * (1 + 1e-5) + 1e-6
        second = third


@EVERY
def test_dead_inputs_and_silent_outputs_do_no_harm(method):
    sums = Accumulator(18, 3)
    sums.add(np.zeros((50, 18), np.float32), np.ones((50, 3), np.float32))
    moments, weight = sums.moments(), np.zeros((3, 2, 3, 3))
    factors = split(method, weight, 1)
    result = fit(method.formula, moments, weight.reshape(3, -1), factors, strength=1e-2, sweeps=2)
    kernel = kernel_matrix(method.formula, result.factors)
    assert np.isfinite(kernel).all()
    np.testing.assert_allclose(result.bias, 1)
    assert output_error(moments, kernel, result.bias) == 0


@EVERY
@given(SIZES)
@settings(max_examples=15, deadline=None)
def test_vectors_of_length_1_leave_the_product(method, sizes):
    channels, out, rank, seed = sizes
    weight, *_ = problem(channels, out, seed)
    formula = method.formula
    rng = np.random.default_rng(seed)
    factors = tuple(rng.standard_normal(f.shape) for f in split(method, weight, rank))
    for index in range(len(formula.terms)):
        if index != formula.carrier:
            balanced = unit(formula, factors, index)
            np.testing.assert_allclose(
                formula.recompose(balanced), formula.recompose(factors), rtol=1e-9, atol=1e-9
            )
