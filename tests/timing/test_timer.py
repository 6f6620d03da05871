"""Choosing forms: by prediction, by measurement, and the layers that are left alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dacconv
from dacconv.conversion import pipeline
from dacconv.decompositions.forms import FORMS
from dacconv.errors import UsageError
from dacconv.graph.types import Choice, Conv, Geometry, Layer, Plan, Skipped
from dacconv.support.machine import cores
from dacconv.timing import PredictedSpeeds, Target, Timer, target_for
from dacconv.timing import timer as timing
from dacconv.timing.cache import Cache
from dacconv.timing.choose import choose_forms
from dacconv.timing.speeds import TimingOptions

ORT = Target("onnxruntime", 1)
RANK_2, RANK_3 = Choice("conv", "dac", (2,)), Choice("conv", "dac", (3,))


def layer(name: str = "conv", channels: int = 64, side: int = 56) -> Layer:
    geometry = Geometry(
        channels, channels, (3, 3), (1, 1), (1, 1), 1, True, (side, side), (side, side)
    )
    return Layer(name, "conv", (name,), (geometry,))


class Fixed:
    """Speeds that are what the test says."""

    def __init__(self, **times: float) -> None:
        self.times = times
        self.measured = False

    def __call__(self, layer: Layer, choice: Choice, forms: Sequence[str]) -> Mapping[str, float]:
        return {form: self.times[form] for form in forms if form in self.times}


def chosen(
    speeds: Fixed,
    form: str = "auto",
    forms: Sequence[str] = tuple(FORMS),
    *,
    measured: bool = False,
    choice: Choice = RANK_2,
) -> Plan:
    plan = Plan((choice,), (Skipped("other", "not selected"),))
    speeds.measured = measured
    layers = [layer(), layer("other")]
    return choose_forms(plan, layers, form, lambda _: forms, speeds, format="onnx")


def test_auto_takes_the_fastest_that_the_format_can_write() -> None:
    speeds = Fixed(multiplier=1.2, sum=0.4, repeat=0.6, concat=0.5)
    assert chosen(speeds).choices[0].form == "sum"
    assert chosen(speeds, forms=("multiplier", "repeat")).choices[0].form == "repeat"
    assert chosen(speeds, forms=("multiplier",)).choices[0].form == "multiplier"


def test_a_form_that_was_asked_for_is_taken() -> None:
    speeds = Fixed(multiplier=1.2, sum=0.4, repeat=0.6, concat=0.5)
    assert chosen(speeds, "concat").choices[0].form == "concat"
    mine = Choice("conv", "dac", (2,), form="repeat")
    assert chosen(speeds, choice=mine).choices[0].form == "repeat"
    with pytest.raises(UsageError, match=r"form 'sum' cannot be written for layer conv"):
        chosen(speeds, "sum", forms=("multiplier",))
    with pytest.raises(UsageError, match=r"'fast' is not one of multiplier, sum"):
        chosen(speeds, "fast")


def test_what_no_form_makes_faster_is_left_alone_only_where_it_was_measured() -> None:
    slow = Fixed(multiplier=1.9, sum=1.3, repeat=1.2, concat=1.4)
    plan = chosen(slow, measured=True)
    assert not plan.choices
    assert [s.layer for s in plan.skipped] == ["conv", "other"]
    assert "1.20 x the conv's time at best (form repeat)" in plan.skipped[0].reason
    predicted = chosen(slow).choices[0]
    assert predicted.form == "repeat"
    assert "--tune" in predicted.note
    assert not chosen(slow, "concat", measured=True).choices


def test_rank_1_has_one_form() -> None:
    speeds = Fixed(multiplier=0.3)
    assert chosen(speeds, choice=Choice("conv", "dac", (1,))).choices[0].form == "multiplier"


def test_nothing_known_means_the_multiplier() -> None:
    assert chosen(Fixed()).choices[0].form == "multiplier"
    assert chosen(Fixed(), measured=True).choices[0].form == "multiplier"


def test_predictions_are_for_the_threads_and_the_runtime_to_come(assets) -> None:
    model = dacconv.load(assets / "fashion.onnx")
    speeds = pipeline.predicted_speeds(model, TimingOptions(target="torch", threads=1))
    assert isinstance(speeds, PredictedSpeeds)
    assert speeds.target == Target("torch", 1)
    layers = {layer.name: layer for layer in dacconv.survey(model)}
    for target in ("onnxruntime", "torch"):
        speeds = pipeline.predicted_speeds(model, TimingOptions(target=target, threads=1))
        for choice in dacconv.plan(model, rank=3, speeds=speeds).choices:
            times = speeds(layers[choice.layer], choice, tuple(FORMS))
            assert choice.form == min(times, key=times.get)


def test_targets() -> None:
    def target(engine: str, *given: Any) -> Target:
        return target_for(engine, TimingOptions(True, *given))

    assert target("onnxruntime") == Target("onnxruntime", cores())
    assert target("onnxruntime", "torch", 2) == Target("torch", 2)
    assert target("torch.nn", None, 1, "cuda") == Target("torch.nn", 1, "cuda")
    assert target("torch", None, 1) == Target("torch", 1)
    with pytest.raises(UsageError, match="'tvm' is not onnxruntime or torch"):
        target("onnxruntime", "tvm")
    with pytest.raises(UsageError, match="not on cuda"):
        target("onnxruntime", None, None, "cuda")


class One:
    """A model of one conv."""

    def __init__(self) -> None:
        weight = np.zeros((8, 4, 3, 3), np.float32)
        self.made = Conv(weight, None, (2, 1), ((0, 1), (1, 1)), (1, 1))

    def conv(self, node: str) -> Conv:
        return self.made


def small() -> Layer:
    geometry = Geometry(4, 8, (3, 3), (2, 1), (1, 1), 1, False, (11, 10), (5, 10))
    return Layer("conv", "conv", ("conv",), (geometry,))


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch", "torch.nn"])
def test_timing_runs_every_form_and_remembers(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "ROUNDS", 2)
    monkeypatch.setattr(timing, "MIN_SECONDS", 0.0)
    path = tmp_path / "cache" / "timings.json"
    forms = tuple(FORMS)
    timer = Timer(One(), Target(runtime, 1), Cache(path))
    first = timer(small(), RANK_3, forms)
    assert set(first) == set(forms)
    assert timer.cases == 1
    again = Timer(One(), Target(runtime, 1), Cache(path))
    assert again(small(), RANK_3, forms) == first
    assert again.cases == 0
    again(small(), RANK_2, forms)
    assert again.cases == 1
    other = Timer(One(), Target(runtime, 2), Cache(path))
    other(small(), RANK_3, forms)
    assert other.cases == 1
    (version, timings) = json.loads(path.read_text())["version"], json.loads(path.read_text())
    assert version == 1
    assert len(timings["timings"]) == 2


def test_a_layer_that_takes_less_than_the_overhead_has_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dacconv.formats.onnx.timing.layer_overhead", lambda *rest, **more: 1.0)
    monkeypatch.setattr(timing, "MIN_SECONDS", 0.0)
    path = tmp_path / "timings.json"
    for _ in range(2):  # measured, then read from the file
        timer = Timer(One(), ORT, Cache(path))
        assert timer(small(), RANK_2, ("multiplier", "sum")) == {"multiplier": 1.0, "sum": 1.0}


def test_a_layer_of_unknown_size_is_not_timed() -> None:
    geometry = Geometry(4, 8, (3, 3), (1, 1), (1, 1), 1, False, None, None)
    timer = Timer(One(), ORT, Cache())
    assert timer(Layer("conv", "conv", ("conv",), (geometry,)), RANK_2, ("sum",)) == {}
    assert timer.cases == 0


def test_a_damaged_cache_is_told_and_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    path.write_text("{broken")
    with pytest.raises(UsageError, match="not a file of timings"):
        Cache(path).get(ORT, "case")
    assert path.read_text() == "{broken"


def test_two_writers_keep_each_others_times(tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    first, second = Cache(path), Cache(path)
    first.get(ORT, "a"), second.get(ORT, "b")
    first.put(ORT, "a", {"original": 1.0})
    second.put(ORT, "b", {"original": 2.0})
    assert Cache(path).get(ORT, "a") == {"original": 1.0}
    assert Cache(path).get(ORT, "b") == {"original": 2.0}


@pytest.mark.parametrize(
    ("ratios", "rounds"),
    [
        ([0.5, 0.7], timing.NETWORK_ROUNDS),  # wide, and clear all the same
        ([1.0, 1.01], timing.NETWORK_ROUNDS),  # narrow
        ([0.9, 1.1], timing.MOST_ROUNDS),  # in doubt
    ],
)
def test_a_network_is_timed_until_it_is_told_from_the_original(
    ratios: list[float], rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = []

    def timed(names: list[str], opened: object, turn: int, runs: int) -> dict[str, float]:
        turns.append(turn)
        return {"original": 2.0, "converted": 2.0 * ratios[turn % 2]}

    monkeypatch.setattr(timing, "_round", timed)
    found = timing.ratios_to_first(
        ["original", "converted"], lambda name: nullcontext(lambda: None)
    )
    assert len(turns) == rounds
    assert found["original"].high == 1
    assert (found["converted"].low, found["converted"].high) == tuple(ratios)
