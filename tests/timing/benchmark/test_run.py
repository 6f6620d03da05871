"""Benchmarks from end to end, on networks so small that only their form can be judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

import dacconv
from dacconv.api import bench
from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.base import LoadOptions
from dacconv.formats.timing import Setting
from dacconv.reports import benchmark_words as benchmark_text
from dacconv.reports import plots
from dacconv.reports.plots import bench as drawing
from dacconv.timing.benchmark import run
from dacconv.timing.benchmark.result import (
    Benchmark,
    Case,
    LayerTime,
    LayerTimes,
    Machine,
    Memory,
    Subject,
    Timing,
)
from dacconv.timing.benchmark.run import _order
from dacconv.timing.intervals import Interval
from tests import cli_nets

QUICK = {"rounds": 6, "seconds": 0.1}


@pytest.fixture(scope="module", autouse=True)
def short_turns():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "TURN_SECONDS", 0.005)
        yield


@pytest.fixture(scope="module")
def nets(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nets")
    cli_nets.write_all(folder)
    model = dacconv.load(folder / "net.onnx")
    done = dacconv.convert(model, dacconv.plan(model, rank=2, allow_costlier=True))
    done.save(folder / "dac.onnx")
    fixed = onnx.load(folder / "net.onnx")
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, folder / "fixed.onnx")
    return folder


@pytest.fixture(scope="module")
def result(nets) -> Benchmark:
    return bench(
        nets / "net.onnx", nets / "dac.onnx", batches=(1, 3), threads=(1,), layers=True, **QUICK
    )


def test_every_setting_is_a_case_and_every_round_counts(result, nets) -> None:
    assert [(case.batch, case.threads, case.rounds) for case in result.cases] == [
        (1, 1, 6),
        (3, 1, 6),
    ]
    assert result.cases[1].inputs == ("image 3x3x12x12 float32",)
    for case in result.cases:
        assert case.fresh  # so small a network has fresh processes whatever the time
        first, second = case.timings
        assert first.ratio is None
        assert len(second.per_round) == 6
        expected = sorted(a / b for a, b in zip(first.per_round, second.per_round, strict=True))
        assert second.ratio.median == pytest.approx((expected[2] + expected[3]) / 2)
        assert (second.ratio.low, second.ratio.high) == pytest.approx((expected[0], expected[5]))
        assert second.ms.low <= second.first_quartile <= second.third_quartile <= second.ms.high
    sizes = [(nets / name).stat().st_size for name in ("net.onnx", "dac.onnx")]
    assert [model.size for model in result.models] == sizes
    assert [row.name for row in result.layers.rows if row.layer][:2] == ["conv1", "conv2"]


def test_json_and_markdown_hold_it_all(result) -> None:
    data = json.loads(benchmark_text.as_json(result))
    assert data["schema_version"] == 1
    assert data["cases"][0]["timings"][1]["ratio"]["confidence"] > 0.95
    assert data["layers"]["rows"][0]["name"] == "conv1"
    text = benchmark_text.markdown(result)
    assert "## batch 3, 1 thread" in text
    assert "| conv1 |" in text
    assert "total, profiled" in text


def test_formats_side_by_side(nets) -> None:
    arch = f"{cli_nets.__file__}:SmallNet"
    found = bench(
        nets / "net.onnx",
        nets / "net.pth",
        arch=arch,
        input_shapes={"": (2, 3, 12, 12)},
        threads=(1,),
        channels_last=False,
        **QUICK,
    )
    assert [model.format for model in found.models] == ["onnx", "state_dict"]
    assert found.cases[0].batch == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batches": (0,)}, "not a number above 0"),
        ({"threads": (1, 1)}, "twice"),
        ({"rounds": 5}, "6 are the fewest"),
        ({"seconds": float("nan")}, "not a time"),
    ],
)
def test_nonsense_is_refused(nets, given, said) -> None:
    with pytest.raises(UsageError, match=said):
        bench(nets / "net.onnx", nets / "dac.onnx", **{**QUICK, **given})


def test_models_that_do_not_fit_are_refused(nets, tmp_path) -> None:
    with pytest.raises(UsageError, match="--batch 4 does not fit") as told:
        bench(nets / "net.onnx", nets / "fixed.onnx", batches=(4,))
    assert "fixed.onnx" in told.value.where
    with pytest.raises(UnsupportedError, match="architecture with arch"):
        bench(nets / "net.onnx", nets / "net.pth")
    other = onnx.load(nets / "net.onnx")
    other.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 16
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(UnsupportedError, match=r"different inputs: .*1x3x12x12.*1x3x16x12"):
        bench(nets / "net.onnx", tmp_path / "other.onnx")


def test_no_cuda_is_said(nets) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    from dacconv.formats.torch import timing as torch_time

    for device, said in (("cuda", "no CUDA device"), ("gpu", "not a device of torch")):
        with pytest.raises(UsageError, match=said):
            torch_time.load_timed(nets / "net.pth", LoadOptions(), Setting(device=device))
    with pytest.raises(UsageError, match="not one of float16"):
        torch_time.load_timed(nets / "net.pth", LoadOptions(), Setting(dtype="int8"))


def test_torch_settings_take_effect(nets) -> None:
    torch = pytest.importorskip("torch")
    from dacconv.formats.torch import timing as torch_time

    arch = f"{cli_nets.__file__}:SmallNet"
    options = LoadOptions({"": (1, 3, 12, 12)}, arch=arch)
    setting = Setting(dtype="bfloat16", channels_last=True)
    timed = torch_time.load_timed(nets / "net.pth", options, setting)
    seen = []
    timed._module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    timed.step({"x": cli_nets.images(1)})()
    assert seen[0].dtype == timed._module.conv1.weight.dtype == torch.bfloat16
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert timed.device_peak() is None


@pytest.mark.parametrize(
    ("starting", "turn", "seconds", "turns"),
    [
        (2.0, 0.3, 20.0, 0),  # 6 x (2 + 5 x 0.3) are 21
        (2.0, 0.3, 21.5, 5),
        (2.0, 0.5, 30.0, 4),  # no longer in turns than in starting
        (2.0, 5.0, 50.0, 1),
        (9.0, 0.1, 50.0, 0),
        (9.0, 0.1, float("inf"), 5),
    ],
)
def test_processes_are_fresh_where_there_is_time(starting, turn, seconds, turns) -> None:
    assert run.fresh_turns(starting, turn, seconds) == turns


def test_everybody_is_first_equally_often() -> None:
    for count in (2, 3):
        orders = [_order(count, turn) for turn in range(2 * count)]
        for place in range(count):
            seen = [order[place] for order in orders]
            assert sorted(seen) == sorted([*range(count)] * 2)


def made(ratios=((1.5, 1.4, 1.6), (0.8, 0.7, 0.9), (1.0, 0.9, 1.1))) -> Benchmark:
    def timing(name: str, ratio: Interval | None) -> Timing:
        ms = Interval(10.0, 9.0, 11.5, 0.96)
        memory = Memory(10 * 2**20, 60 * 2**20, 40 * 2**20)
        return Timing(name, ms, 9.5, 10.5, 100, 0.0, (10.0,) * 6, memory, ratio)

    others = [timing(f"m{i}.onnx", Interval(*r, 0.96)) for i, r in enumerate(ratios)]
    timings = (timing("net.onnx", None), *others)
    models = tuple(Subject(t.model, t.model, "onnx", "onnxruntime 1", 2**20) for t in timings)
    rows = (
        LayerTime("conv", True, (4.0, 2.0, None, 5.0)),
        LayerTime("Add", False, (1.0, 1.0, 1.0, 1.0)),
    )
    return Benchmark(
        machine=Machine("A processor", 2, 8.0, "Linux", "3.11", 0.1),
        models=models,
        device="cpu",
        dtype=None,
        channels_last=False,
        seed=0,
        cases=(Case(1, None, ("x 1x3x8x8 float32",), 20, timings),),
        layers=LayerTimes(1, None, rows, (5.0, 3.0, 1.0, 6.0), 20),
    )


def test_words_say_only_what_is_certain() -> None:
    told = benchmark_text.facts(made())
    assert told[0] == "m0.onnx: 1.50 x as fast as net.onnx"
    assert told[1] == "m1.onnx: 1.25 x slower than net.onnx"
    assert told[2].startswith("m2.onnx: neither faster nor slower")
    assert "rounds, a process for each model; faster" in told[3]
    one = made()
    fresh = replace(one, cases=tuple(replace(case, fresh=True) for case in one.cases))
    assert (
        "rounds, a process for each model in every round; faster" in benchmark_text.facts(fresh)[3]
    )
    tables = list(benchmark_text.tables(made()))
    assert tables[0][0] == "batch 1, threads by default"
    assert tables[0][1][2] == (
        "m0.onnx", "10.0", "9.50 - 10.5", "1.50 x", "1.40 - 1.60", "50.0 MiB", "30.0 MiB", "1.0 MiB"
    )  # fmt: skip
    assert tables[0][2] == [False, True, False, False]
    assert tables[1][1][1] == ("conv", "4.00", "2.00", "-", "5.00", "2.00 x", "-", "0.80 x")


def test_the_figure_shows_each_model_and_how_sure_it_is(tmp_path) -> None:
    figure = drawing.draw(made())
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.containers[0]] == [10.0] * 4
    labels = [text.get_text() for text in axes.texts]
    assert labels[1] == "10.0 ms: 1.50 x as fast (1.40 - 1.60)"
    colours = {bar.get_facecolor() for bar in axes.containers[0]}
    assert len(colours) == 3
    for name in ("b.png", "b.svg"):
        plots.save_as(figure, tmp_path / name)
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert "m0.onnx" in (tmp_path / "b.svg").read_text()
