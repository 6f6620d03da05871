from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dacconv.planning import knapsack
from dacconv.planning.knapsack import Option, lower_bound, pack

OPTIONS = st.builds(Option, st.integers(0, 40), st.integers(0, 50).map(float))
LAYERS = st.lists(st.lists(OPTIONS, min_size=1, max_size=4), min_size=1, max_size=5)


def brute(layers, budget):
    packings = itertools.product(*layers)
    return min(
        (sum(o.damage for o in p) for p in packings if sum(o.cost for o in p) <= budget),
        default=None,
    )


@given(LAYERS, st.integers(0, 120))
def test_the_packing_is_the_best_one_there_is(layers, budget):
    best, found = brute(layers, budget), pack(layers, budget)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert found.damage == best
    assert found.gap == 0
    taken = [options[i] for options, i in zip(layers, found.picks, strict=True)]
    assert sum(o.cost for o in taken) == found.cost <= budget
    assert sum(o.damage for o in taken) == found.damage


@given(LAYERS, st.integers(0, 120))
def test_the_bound_is_one(layers, budget):
    best = brute(layers, budget)
    if best is not None:
        assert lower_bound(layers, budget) <= best + 1e-9


@given(LAYERS, st.integers(0, 120))
def test_with_few_states_the_gap_is_stated(layers, budget):
    best = brute(layers, budget)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "STATES", 3)
        found = pack(layers, budget)
    assert (found is None) == (best is None)
    if found is not None:
        assert found.cost <= budget
        assert found.damage - found.gap <= best + 1e-9


def test_real_sizes_are_packed_within_the_budget():
    layers = [
        [Option(int(1e7 * (i + 1) * r), 1.0 / (i + 1) / r**2) for r in range(1, 10)]
        for i in range(60)
    ]
    budget = sum(options[3].cost for options in layers)
    found = pack(layers, budget)
    assert found.cost <= budget
    assert found.gap <= 0.02 * found.damage
