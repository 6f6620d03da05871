from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dacconv.decompositions import METHODS
from dacconv.errors import UnsupportedError, UsageError
from dacconv.graph.types import Geometry, Layer
from dacconv.planning import Evidence, RankOptions, Selection, splits_worth
from dacconv.planning.budget import macs, params
from dacconv.planning.plans import SPARED, make_plan

DAC = METHODS["dac"]


def layer(name, channels=16, out=16, size=8, kernel=(3, 3), skip=None):
    geometry = Geometry(channels, out, kernel, (1, 1), (1, 1), 1, False, (size, size),
                        (size, size) if size else None)  # fmt: skip
    return Layer(name, "conv", (name,), (geometry,), skip)


LAYERS = (layer("a", size=16), layer("b"), layer("c", out=32), layer("head", skip="a 1x1 kernel"))


def plan(damage, layers=LAYERS, selection=None, **budget):
    evidence = Evidence(tuple(layers), lambda name, method: None, damage)
    return make_plan(RankOptions(**budget), selection or Selection(), evidence)


def cost(made, price=macs, layers=LAYERS):
    choices = {choice.layer: choice for choice in made.choices}
    return sum(price(entry, choices.get(entry.name)) for entry in layers)


@given(st.floats(0.45, 0.95), st.sampled_from([("macs", macs), ("params", params)]))
def test_the_whole_network_keeps_within_its_budget(share, kind):
    name, price = kind
    made = plan(lambda entry, choice: 1 / choice.rank[0], **{name: share})
    assert cost(made, price) <= share * sum(price(entry, None) for entry in LAYERS)


def test_the_least_damage_is_chosen_and_the_rest_left_alone():
    harm = {"a": 1e-6, "b": 10.0, "c": 10.0}
    made = plan(lambda entry, choice: harm[entry.name] / choice.rank[0], macs=0.75)
    assert [choice.layer for choice in made.choices] == ["a"]
    assert {s.reason for s in made.skipped if s.layer in "bc"} == {SPARED}


def test_only_selected_layers_are_split():
    made = plan(
        lambda entry, choice: 1 / choice.rank[0], selection=Selection(skip=("a",)), macs=0.95
    )
    assert "a" not in {choice.layer for choice in made.choices}


def test_only_ranks_that_save_something_are_options():
    worth = splits_worth(LAYERS[0], DAC)
    ranks = [choice.rank for choice in worth]
    assert ranks == [(rank,) for rank in range(1, len(worth) + 1)]
    assert macs(LAYERS[0], worth[-1]) < macs(LAYERS[0], None)
    unsized = layer("x", size=0)
    assert [choice.rank for choice in splits_worth(unsized, DAC)] == ranks


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, 1.5])
def test_a_budget_is_a_share(share):
    with pytest.raises(UsageError, match="not a share"):
        plan(lambda entry, choice: 0.0, macs=share)


def test_a_budget_out_of_reach_says_what_is_in_reach():
    with pytest.raises(UsageError, match="cannot be reached: rank 1 everywhere leaves"):
        plan(lambda entry, choice: 0.0, macs=0.01)


def test_unknown_sizes_leave_parameters_as_a_budget():
    layers = (layer("a", size=0), layer("b", size=0))
    with pytest.raises(UnsupportedError, match="not known"):
        plan(lambda entry, choice: 0.0, layers=layers, macs=0.5)
    assert plan(lambda entry, choice: 1 / choice.rank[0], layers=layers, params=0.5).choices


def test_two_budgets_exclude_each_other():
    with pytest.raises(UsageError, match="one way"):
        plan(lambda entry, choice: 0.0, macs=0.5, params=0.5)
