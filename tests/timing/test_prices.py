"""The model of a runtime's prices, and the speeds that are predicted with it."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest

from dacconv.decompositions.costs import Work, work
from dacconv.decompositions.forms import FORMS
from dacconv.graph.types import Choice, Geometry, Layer
from dacconv.timing.prices import PRICES, PredictedSpeeds, Rates
from dacconv.timing.speeds import Target

RUNTIMES = ("onnxruntime", "torch", "torch.nn")
ORT = PRICES["onnxruntime"]


def conv(
    channels: int, out: int, size: tuple[int, ...], kernel: int = 3, groups: int = 1
) -> Geometry:
    ones = (1,) * len(size)
    return Geometry(channels, out, (kernel,) * len(size), ones, ones, groups, False, size, size)


def layer(geometry: Geometry) -> Layer:
    return Layer("conv", "conv", ("conv",), (geometry,))


DENSE = conv(64, 64, (56, 56))
RANK_2 = Choice("conv", "dac", (2,))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize(
    "geometry",
    [
        DENSE,
        conv(3, 64, (224, 224), 7),
        conv(1, 1, (1, 1)),
        conv(64, 256, (56, 56), 1),
        conv(64, 64, (56, 56), 3, 64),
        conv(64, 192, (28, 28), 3, 64),
        conv(96, 60, (28, 28), 3, 3),
        conv(64, 128, (1024,)),
        conv(16, 16, (8, 16, 16)),
        replace(DENSE, kernel=(3, 1)),
        replace(DENSE, kernel=(1, 3)),
        replace(DENSE, batch=8),
    ],
)
def test_any_conv_has_a_price(runtime: str, threads: int, geometry: Geometry) -> None:
    seconds = PRICES[runtime].conv_seconds(geometry, threads)
    assert 0 < seconds < 10
    larger = replace(geometry, batch=4 * geometry.batch)
    assert seconds <= PRICES[runtime].conv_seconds(larger, threads)


def test_measured_convs_are_priced_within_a_third() -> None:
    """Milliseconds in ONNX Runtime on one thread of the machine that the rates are fitted to."""
    for geometry, ms in (
        (DENSE, 1.95),
        (conv(512, 512, (14, 14)), 7.95),
        (conv(24, 24, (28, 28)), 0.121),
        (conv(64, 3, (128, 128)), 2.48),
        (conv(256, 64, (56, 56), 1), 0.883),
        (conv(64, 64, (56, 56), 3, 64), 0.043),
        (conv(128, 100, (28, 28)), 1.72),
        (conv(64, 64, (1024,)), 0.260),
    ):
        ratio = 1e3 * ORT.conv_seconds(geometry, 1) / ms
        assert abs(math.log(ratio)) < math.log(4 / 3), (geometry, ratio)


def test_a_filter_per_channel_is_fast_and_several_are_not() -> None:
    """What a depthwise multiplier costs is why there are forms at all."""
    for runtime in RUNTIMES:
        plain = PRICES[runtime].conv_seconds(conv(64, 64, (56, 56), 3, 64), 1)
        several = PRICES[runtime].conv_seconds(conv(64, 128, (56, 56), 3, 64), 1)
        assert several > 3 * plain


def test_channels_are_filled_up_to_blocks() -> None:
    assert ORT.conv_seconds(conv(64, 3, (56, 56)), 1) > 0.9 * ORT.conv_seconds(
        conv(64, 16, (56, 56)), 1
    )
    assert ORT.conv_seconds(conv(66, 64, (56, 56)), 1) > ORT.conv_seconds(DENSE, 1)


def test_a_chain_costs_its_convs_and_what_is_done_around_them() -> None:
    chain = (conv(64, 32, (56, 56), 1), conv(32, 64, (56, 56)))
    alone = ORT.seconds(Work(chain), 1)
    assert alone == pytest.approx(sum(ORT.conv_seconds(one, 1) for one in chain))
    assert ORT.seconds(Work(chain, copied=10**6, copies=1), 1) > alone
    added = Work(chain, added=3 * 10**7, additions=1)
    assert ORT.seconds(added, 1) > alone
    assert PRICES["torch"].seconds(added, 1) > PRICES["torch"].seconds(Work(chain), 1)


@pytest.mark.parametrize("form", FORMS)
def test_the_work_of_a_form(form: str) -> None:
    done = work(DENSE, Choice("conv", "dac", (3,), form=form))
    additions, copies = {"sum": (2, 0), "multiplier": (0, 0)}.get(form, (0, 1))
    assert (done.additions, done.copies) == (additions, copies)
    assert (done.added > 0, done.copied > 0) == (additions > 0, copies > 0)


def test_more_threads_take_less_time_for_large_convs() -> None:
    for runtime in RUNTIMES:
        one, two = (PRICES[runtime].conv_seconds(DENSE, threads) for threads in (1, 2))
        assert 0.5 <= two / one < 0.75


def test_unknown_sizes_have_no_price_but_speeds_take_a_typical_one() -> None:
    unknown = replace(DENSE, input_size=None, output_size=None)
    with pytest.raises(ValueError, match="sizes of the conv are not known"):
        ORT.conv_seconds(unknown, 1)
    assert PredictedSpeeds(Target("onnxruntime", 1))(
        layer(unknown), RANK_2, tuple(FORMS)
    ).keys() == set(FORMS)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_has_speeds(runtime: str) -> None:
    speeds = PredictedSpeeds(Target(runtime, 2))
    assert not speeds.measured
    ratios = speeds(layer(DENSE), RANK_2, ("multiplier", "repeat"))
    assert set(ratios) == {"multiplier", "repeat"}
    assert all(0.01 < ratio < 10 for ratio in ratios.values())


def test_nothing_is_predicted_for_a_gpu() -> None:
    assert not PredictedSpeeds(Target("torch", 1, "cuda"))(layer(DENSE), RANK_2, tuple(FORMS))


@pytest.mark.parametrize(
    ("runtime", "geometry", "best"),
    [
        # the fastest forms of these layers, as they were measured on two machines
        ("onnxruntime", conv(64, 64, (56, 56)), "sum"),
        ("onnxruntime", conv(256, 256, (28, 28)), "sum"),
        ("torch", conv(128, 128, (14, 14)), "repeat"),
        ("torch", conv(64, 64, (28, 28)), "repeat"),
    ],
)
def test_the_form_that_was_measured_as_the_fastest(
    runtime: str, geometry: Geometry, best: str
) -> None:
    ratios = PredictedSpeeds(Target(runtime, 1))(layer(geometry), RANK_2, tuple(FORMS))
    assert min(ratios, key=lambda form: ratios[form]) == best


def test_every_rate_is_positive() -> None:
    for prices in PRICES.values():
        assert all(getattr(prices.rates, field.name) > 0 for field in fields(Rates))


def test_other_methods_have_speeds_too() -> None:
    """Dense convs of fewer multiply-adds: all of what is saved is time."""
    speeds = PredictedSpeeds(Target("onnxruntime", 1))
    (ratio,) = speeds(layer(DENSE), Choice("conv", "spatial", (32,)), ("auto",)).values()
    assert ratio == pytest.approx(1 / 3, rel=0.1)
