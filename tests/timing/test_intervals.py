from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dacconv.timing.intervals import median_interval

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60)


@given(VALUES)
def test_the_interval_holds_the_median_and_is_made_of_values(values):
    found = median_interval(values)
    assert found.low <= found.median <= found.high
    assert {found.low, found.high} <= set(values)


@given(VALUES, st.floats(0.1, 10))
def test_it_scales_with_the_values(values, factor):
    found, scaled = median_interval(values), median_interval([factor * v for v in values])
    assert scaled.low == pytest.approx(factor * found.low)
    assert scaled.high == pytest.approx(factor * found.high)


@pytest.mark.parametrize(("count", "rank"), [(6, 1), (8, 1), (9, 2), (20, 6), (50, 18), (100, 40)])
def test_ranks_are_those_of_the_tables(count, rank):
    found = median_interval(range(1, count + 1))
    assert (found.low, found.high) == (rank, count + 1 - rank)
    assert found.confidence >= 0.95


def test_too_few_values_say_so():
    assert median_interval([1, 2, 3, 4, 5]).confidence == 1 - 2 / 2**5
    assert median_interval([3]).confidence == 0
    with pytest.raises(ValueError, match="nothing"):
        median_interval([])


@pytest.mark.parametrize("count", [6, 7, 9])
def test_it_covers_as_often_as_it_says(count):
    """All ways in which the values can lie below and above the median, equally likely."""
    covered = total = 0
    for signs in product((-1, 1), repeat=count):
        found = median_interval([sign * (1 + at) for at, sign in enumerate(signs)])
        covered += found.low <= 0 <= found.high
        total += 1
    assert covered / total == pytest.approx(median_interval(range(count)).confidence)
