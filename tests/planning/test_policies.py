import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dacconv.decompositions.svd import channel_svd
from dacconv.errors import UsageError
from dacconv.graph.types import Geometry, Layer
from dacconv.planning import Evidence, RankOptions, Selection, select
from dacconv.planning.energy import smallest_rank
from dacconv.planning.plans import NOT_SELECTED, make_plan


def layer(name: str, skip: str | None = None, out: int = 64) -> Layer:
    geometry = Geometry(16, out, (3, 3), (1, 1), (1, 1), 1, False, (8, 8), (8, 8))
    return Layer(name, "conv", (name,), (geometry,), skip)


LAYERS = [
    layer("stem", "a 1x1 kernel"),
    *(layer(f"layer{i}.conv") for i in range(5)),
    layer("a[0]"),
]


def spectra(name, method):
    seed = [x.name for x in LAYERS].index(name)
    return channel_svd(np.random.default_rng(seed).standard_normal((64, 16, 3, 3)))


def names(**selection):
    return [x.name for x in select(LAYERS, Selection(**selection))]


def test_nothing_said_is_every_eligible_layer():
    assert names() == [x.name for x in LAYERS[1:]]


def test_first_last_globs_and_skips():
    assert names(first_k=2) == ["layer0.conv", "layer1.conv"]
    assert names(last_k=2) == ["layer4.conv", "a[0]"]
    assert names(layers=("layer[13].*",)) == ["layer1.conv", "layer3.conv"]
    assert names(layers=("layer*",), skip=("*0*",), last_k=1) == ["layer4.conv"]
    assert names(layers=("a[0]",)) == ["a[0]"]


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ({"first_k": 1, "last_k": 1}, "exclude each other"),
        ({"first_k": 7}, "only 6 can be split"),
        ({"last_k": 0}, "not a whole number above 0"),
        ({"layers": ("layr1.conv",)}, "layer1.conv"),
        ({"skip": ("nothing*",)}, "no layer matches"),
        ({"layers": ("stem",)}, "a 1x1 kernel"),
    ],
)
def test_a_selection_that_cannot_be(selection, words):
    with pytest.raises(UsageError) as caught:
        names(**selection)
    assert words in str(caught.value)


def plan(**options):
    return make_plan(RankOptions(**options), Selection(last_k=3), Evidence(tuple(LAYERS), spectra))


def test_uniform():
    assert [(c.layer, c.rank) for c in plan(rank=2).choices] == [
        ("layer3.conv", (2,)),
        ("layer4.conv", (2,)),
        ("a[0]", (2,)),
    ]
    reasons = {s.layer: s.reason for s in plan(rank=2).skipped}
    assert reasons == {
        "stem": "a 1x1 kernel",
        **{f"layer{i}.conv": NOT_SELECTED for i in range(3)},
    }


@pytest.mark.parametrize("rank", [0, -1, 2.5, True])
def test_a_rank_is_whole_and_positive(rank):
    with pytest.raises(UsageError, match="not a whole number above 0"):
        plan(rank=rank)


def test_above_full_rank_is_full_rank_and_is_said():
    options = RankOptions(rank=10**9, allow_costlier=True)
    made = make_plan(options, Selection(), Evidence(tuple(LAYERS), spectra))
    assert {c.rank for c in made.choices} == {(9,)}
    assert "above full rank 9" in made.choices[0].note


def test_a_costlier_rank_leaves_the_layer_alone():
    made = plan(rank=10**9)
    assert not made.choices
    reason = made.skipped[-1].reason
    assert "would cost 1.14 x" in reason
    assert "above full rank 9" in reason


def test_ranks_by_name_and_glob_the_last_wins():
    made = plan(ranks={"layer*": 1, "layer4.conv": 3})
    assert [(c.layer, c.rank) for c in made.choices] == [
        ("layer3.conv", (1,)),
        ("layer4.conv", (3,)),
    ]


def test_a_rank_for_a_layer_that_is_not_there():
    with pytest.raises(UsageError, match="no layer matches"):
        plan(ranks={"nothing": 1})


def test_one_way_to_choose():
    with pytest.raises(UsageError, match="none given"):
        plan()
    with pytest.raises(UsageError, match="--rank and --energy given"):
        plan(rank=1, energy=0.5)


@pytest.mark.parametrize("energy", [0.0, -1.0, 1.5, float("nan")])
def test_energy_is_a_share(energy):
    with pytest.raises(UsageError, match="not a share"):
        plan(energy=energy)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 1.0), st.sampled_from(["mean", "max"]))
def test_energy_takes_the_smallest_rank_that_reaches_it(seed, share, over):
    values = channel_svd(np.random.default_rng(seed).standard_normal((12, 4, 3, 3))).values
    rank = smallest_rank(values, share, over)
    kept = np.cumsum(values**2, axis=1) / (values**2).sum(axis=1, keepdims=True)
    curve = kept.mean(axis=0) if over == "mean" else kept.min(axis=0)
    assert curve[rank - 1] >= share - 1e-9
    assert rank == 1 or curve[rank - 2] < share


def test_energy_of_a_kernel_of_zeros_is_kept_by_one():
    assert smallest_rank(np.zeros((3, 9)), 1.0) == 1


def test_energy_of_everything_is_the_rank_that_the_kernel_has():
    values = np.zeros((2, 9))
    values[:, :4] = [4, 3, 2, 1]
    assert smallest_rank(values, 1.0) == 4
