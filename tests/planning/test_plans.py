import json

import pytest

from dacconv.errors import UsageError
from dacconv.graph.plan_json import plan_to_json
from dacconv.graph.types import Choice, Geometry, Layer, Plan, Skipped
from dacconv.planning.plans import bind, plan_from_json

GEOMETRY = Geometry(16, 64, (3, 3), (1, 1), (1, 1), 1, False, None, None)
LAYERS = [
    Layer(n, "conv", (n,), (GEOMETRY,), s) for n, s in [("a", None), ("b", None), ("c", "no")]
]
PLAN = Plan((Choice("a", "dac", (2,)),), (Skipped("b", "not selected"), Skipped("c", "no")))


def test_round_trip():
    assert plan_from_json(plan_to_json(PLAN), "p") == PLAN
    assert bind(PLAN, LAYERS, where="p", allow_costlier=False) == PLAN


def test_an_edited_plan():
    data = json.loads(plan_to_json(PLAN))
    data["layers"] = [{"name": "b", "rank": 100}]
    made = bind(plan_from_json(json.dumps(data), "p"), LAYERS, where="p", allow_costlier=True)
    assert [(c.layer, c.rank) for c in made.choices] == [("b", (9,))]


def test_a_plan_of_version_1_opens_its_strips_forgotten():
    text = """{"plan_version": 1, "strips": 7, "skipped": [],
              "layers": [{"name": "a", "method": "dac", "rank": 2, "form": "sum"}]}"""
    assert plan_from_json(text, "p") == Plan((Choice("a", "dac", (2,), form="sum"),))


@pytest.mark.parametrize("rank", [2, [2]])
def test_a_rank_is_a_number_or_a_list(rank):
    data = {"layers": [{"name": "a", "method": "spatial", "rank": rank}]}
    assert plan_from_json(json.dumps(data), "p").choices == (Choice("a", "spatial", (2,)),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "no list 'layers'"),
        ('{"layers": [3]}', "not a layer"),
        ('{"layers": [{"name": "a", "rank": 0}]}', "not a whole number"),
        ('{"layers": [{"name": "a", "rank": "2"}]}', "not a whole number"),
        ('{"layers": [{"name": "a"}]}', "not a whole number"),
        ('{"layers": [{"name": "a", "rank": 1, "rnk": 2}]}', "unknown key 'rnk'"),
        ('{"layers": [{"name": "a", "rank": 1, "method": "x"}]}', "unknown method"),
        ('{"layers": [{"name": "a", "rank": 1}, {"name": "a", "rank": 1}]}', "twice"),
        ('{"layers": [{"name": "a", "rank": [1, 2]}]}', "dac has 1 ranks, not 2"),
        ('{"layers": [{"name": "a", "rank": [0]}]}', "not a whole number"),
        ('{"layers": [], "plan_version": 99}', "version 99"),
        ('{"layers": [{"name": "aa", "rank": 1}]}', "the nearest are a"),
        ('{"layers": [{"name": "c", "rank": 1}]}', "cannot be split: no"),
    ],
)
def test_a_plan_that_cannot_be(text, words):
    with pytest.raises(UsageError) as caught:
        bind(plan_from_json(text, "p"), LAYERS, where="p", allow_costlier=False)
    assert words in str(caught.value)
