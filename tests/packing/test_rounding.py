"""Rounding with errors made up for: against every other rounding, and against the definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dacconv.packing.rounding import bits_of, damage, metric_of, rounded


def second_moment(n: int, seed: int = 0) -> np.ndarray:
    """The second moment of correlated inputs of different sizes."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((20 * n, n // 10 + 1)) @ rng.standard_normal((n // 10 + 1, n))
    x = (common + 0.3 * rng.standard_normal(common.shape)) * np.exp(rng.random(n))
    return x.T @ x / len(x)


def direct(error: np.ndarray, moment: np.ndarray, kernel: np.ndarray) -> float:
    return float(np.trace(error @ moment @ error.T) / np.trace(kernel @ moment @ kernel.T))


@pytest.fixture
def kernel() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((8, 150))


def test_damage_is_the_error_of_the_output(kernel) -> None:
    moment = second_moment(150)
    metric = metric_of(moment[None], kernel)
    values = np.rint(4 * kernel) / 4
    damped = moment + 0.01 * np.trace(moment) / 150 * np.eye(150)
    expected = direct(kernel - values, damped, kernel) * np.trace(kernel @ damped @ kernel.T)
    assert damage(kernel, values, metric) == pytest.approx(
        expected / np.trace(kernel @ moment @ kernel.T), rel=1e-4
    )


@pytest.mark.parametrize("step", [0.2, 0.7])
def test_it_does_several_times_less_damage_than_rounding_to_the_nearest(kernel, step) -> None:
    moment = second_moment(150)
    metric = metric_of(moment[None], kernel)
    ones = np.ones(len(kernel))
    nearest, better = (rounded(kernel, m, step, ones, 999) for m in (None, metric))
    errors = [direct(kernel - each.values("float64"), moment, kernel) for each in (nearest, better)]
    assert errors[1] < errors[0] / 3
    assert bits_of(better.indices) < 1.05 * bits_of(nearest.indices)


def test_it_is_the_best_of_all_for_inputs_that_are_not_correlated() -> None:
    kernel = np.array([[0.4, -1.3, 0.7]])
    metric = metric_of(np.diag([1.0, 4.0, 9.0])[None], kernel)
    best = min(
        itertools.product([-2, -1, 0, 1, 2], repeat=3),
        key=lambda q: damage(kernel, np.array([q], np.float64), metric),
    )
    assert rounded(kernel, metric, 1.0, np.ones(1), 99).values("float64").tolist() == [list(best)]


def test_groups_are_rounded_each_by_its_own_inputs() -> None:
    rng = np.random.default_rng(2)
    kernel, moments = rng.standard_normal((6, 30)), np.stack([second_moment(30, s) for s in (3, 4)])
    whole = rounded(kernel, metric_of(moments, kernel), 0.5, np.ones(6), 99).values("float64")
    for g in (0, 1):
        rows = kernel[3 * g : 3 * g + 3]
        alone = rounded(rows, metric_of(moments[g : g + 1], rows), 0.5, np.ones(3), 99)
        assert np.array_equal(whole[3 * g : 3 * g + 3], alone.values("float64"))


def test_a_row_of_a_large_gain_has_small_steps(kernel) -> None:
    gains = np.array([1.0, 8.0] * 4)
    levels = rounded(kernel, None, 0.5, gains, 999)
    assert levels.row_steps.tolist() == [0, -12] * 4
    errors = np.abs(kernel - levels.values("float64")).max(axis=1)
    assert (errors <= 0.25 / gains * 1.001).all()


@pytest.mark.parametrize("most", [3, 7, 255])
def test_there_are_at_most_so_many_levels(kernel, most: int) -> None:
    for metric in (None, metric_of(second_moment(150)[None], kernel)):
        levels = rounded(kernel, metric, 0.05, np.ones(8), most)
        assert len(levels.multiples) <= most
        assert 0 in levels.multiples


def test_inputs_of_rank_one_and_zeros_can_be_rounded() -> None:
    kernel = np.random.default_rng(0).standard_normal((4, 9))
    for moment in (np.ones((9, 9)), np.zeros((9, 9))):
        metric = metric_of(moment[None], kernel)
        assert metric is not None
        assert np.isfinite(rounded(kernel, metric, 0.3, np.ones(4), 99).values("float32")).all()
    assert metric_of(np.full((1, 9, 9), np.nan), kernel) is None
    indefinite = np.diag([1.0] * 8 + [-0.05])
    assert metric_of(indefinite[None], kernel) is not None
    zeros = rounded(np.zeros((4, 9)), None, 1.0, np.zeros(4), 99)
    assert not zeros.values("float32").any()
