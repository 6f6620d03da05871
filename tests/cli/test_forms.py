"""Forms, tuning and budgets of time as commands."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import dacconv
from dacconv.calibration.prepare import Calibrated
from dacconv.decompositions import METHODS
from dacconv.decompositions.forms import FORMS
from dacconv.timing import timer as timing
from dacconv.timing.intervals import Interval


def outcome(run, *args):
    """A command's exit code, output and messages."""
    done = run(*args)
    return done.code, done.out, done.err


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Times do not matter here, only what is done with them."""
    monkeypatch.setattr(timing, "ROUNDS", 2)
    monkeypatch.setattr(timing, "MOST_ROUNDS", 2)
    monkeypatch.setattr(timing, "MIN_SECONDS", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def sure(timed):
    """Times as they are measured of a whole network, without a doubt."""
    return lambda names, opened: {
        name: found if isinstance(found, Interval) else Interval(found, found, found, 0.95)
        for name, found in timed(names, opened).items()
    }


@pytest.fixture
def fast(monkeypatch):
    """Every split takes half the time, in whatever form, and so does the network."""
    monkeypatch.setattr(
        timing,
        "side_by_side",
        lambda names, opened: {name: 1.0 if name == "original" else 0.5 for name in names},
    )
    monkeypatch.setattr("dacconv.formats.onnx.timing.layer_overhead", lambda *rest, **more: 0.0)
    monkeypatch.setattr("dacconv.timing.whole.side_by_side", timing.side_by_side)
    monkeypatch.setattr("dacconv.timing.whole.ratios_to_first", sure(timing.side_by_side))


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_written_and_planned(run, work, form):
    code, out, _ = outcome(
        run,
        "convert",
        "net.onnx",
        "--rank",
        "2",
        "--form",
        form,
        "-o",
        "out.onnx",
        "--json",
        "r.json",
    )
    assert code == 0
    assert f"2 {form}" in out
    report = json.loads((work / "r.json").read_text())
    assert {layer["form"] for layer in report["layers"] if layer["rank"]} == {form}
    assert {layer["form"] for layer in report["plan"]["layers"]} == {form}
    assert report["verification"]["relative_error"] < 1
    # the plan that is written makes the same file again
    assert (
        run("convert", "net.onnx", "--plan", "r.json", "-o", "again.onnx", "--no-verify").code == 0
    )
    graphs = [onnx.load(work / name).graph for name in ("out.onnx", "again.onnx")]
    assert graphs[0].node == graphs[1].node


def test_forms_agree(run, work):
    models = []
    for form in FORMS:
        name = f"{form}.onnx"
        assert run("convert", "net.onnx", "--rank", "2", "--form", form, "-o", name).code == 0
        models.append(dacconv.load(work / name).runner())
    x = {"image": np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)}
    first, *others = (run_it(x)["scores"] for run_it in models)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-5)


def test_unknown_forms_and_targets_are_told(run):
    code, _, err = outcome(run, "convert", "net.onnx", "--rank", "2", "--form", "fast")
    assert (code, "'fast' is not one of multiplier, sum, repeat, concat, auto" in err) == (2, True)
    code, _, err = outcome(run, "convert", "net.pth", "--rank", "2", "--form", "sum")
    assert (code, "cannot be written for layer" in err) == (2, True)
    code, _, err = outcome(run, "convert", "net.onnx", "--rank", "2", "--tune", "--target", "tvm")
    assert (code, "'tvm' is not onnxruntime or torch" in err) == (2, True)
    code, _, err = outcome(run, "convert", "net.onnx", "--rank", "2", "--timings", "t.json")
    assert (code, "goes with --tune or --latency" in err) == (2, True)
    code, _, err = outcome(run, "convert", "net.pth", "--latency", "0.6")
    assert (code, "cannot be timed" in err) == (2, True)


def test_inspect_tune_shows_every_rank(run, work):
    code, out, _ = outcome(
        run, "inspect", "net.onnx", "--tune", "--threads", "1", "--json", "r.json"
    )
    assert code == 0
    assert "timed layer by layer on" in out
    layers = json.loads((work / "r.json").read_text())["timings"]["layers"]
    assert [layer["layer"] for layer in layers] == ["conv1", "conv2", "conv3"]
    assert [found["rank"] for found in layers[1]["ranks"]] == [1, 2, 3, 4, 5, 6]
    assert all(found["form"] in FORMS for layer in layers for found in layer["ranks"])


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_inspect_tune_times_the_splits_of_any_method(run, work, fast, method):
    args = ("inspect", "net.onnx", "--tune", "--method", method, "--json", "r.json")
    code, out, _ = outcome(run, *args, "--markdown", "r.md")
    assert code == 0
    layers = json.loads((work / "r.json").read_text())["timings"]["layers"]
    splits = [split for layer in layers for split in layer["ranks"]]
    expected = set(METHODS) if method == "auto" else {method}
    assert {split["method"] for split in splits} == expected
    assert all(split["time"] == 0.5 and split["macs"] < 1 for split in splits)
    for split in splits if method != "dac" else ():
        rank = split["rank"]
        numbers = rank if isinstance(rank, list) else [rank]
        cell = f"{split['method']} {', '.join(map(str, numbers))}"
        assert cell in out
        assert cell in (work / "r.md").read_text()


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_a_budget_of_time_with_any_method(run, work, fast, method):
    budget = ("--latency", "0.8", "--method", method, "--calibrate", "none")
    args = ("convert", "net.onnx", *budget, "--json", "r.json")
    code, _, err = outcome(run, *args)
    assert code == 0, err
    report = json.loads((work / "r.json").read_text())
    methods = {layer["method"] for layer in report["layers"] if layer["method"]}
    assert methods
    assert methods <= (set(METHODS) if method == "auto" else {method})


def test_tuning_keeps_what_gets_faster(run, work, fast):
    code, out, _ = outcome(run, "convert", "net.onnx", "--rank", "2", "--tune", "--json", "r.json")
    assert code == 0
    assert "3 of 5 layers split" in out
    report = json.loads((work / "r.json").read_text())
    assert all(t["after_ms"] == t["before_ms"] / 2 for t in report["timings"]["layers"])


def test_tuning_leaves_alone_what_gets_slower(run, monkeypatch, fast):
    slow = dict.fromkeys(("repeat", "concat", "auto"), 2.0)
    slow |= {"original": 1.0, "multiplier": 3.0, "sum": 1.5}
    monkeypatch.setattr(timing, "side_by_side", lambda names, opened: {n: slow[n] for n in names})
    whole(monkeypatch, 0.99, 0.99)  # as the table would have it, it is no faster
    code, out, _ = outcome(run, "convert", "net.onnx", "--rank", "2", "--tune")
    assert code == 0
    assert "0 of 5 layers split" in out
    assert "rank 2 takes 1.50 x the conv's time at best (form sum)" in out
    budget = ("--macs", "0.6", "--calibrate", "none")
    code, out, _ = outcome(run, "convert", "net.onnx", *budget, "--tune", "--force")
    assert code == 0
    assert "the budget is not kept, 100.0 % of the macs are left, not 60.0 %: --tune left" in out


def test_what_the_table_says_is_taken_where_the_network_is_faster_so(run, work, monkeypatch, fast):
    slow = dict.fromkeys(("repeat", "concat", "auto"), 2.0)
    slow |= {"original": 1.0, "multiplier": 3.0, "sum": 1.5}
    monkeypatch.setattr(timing, "side_by_side", lambda names, opened: {n: slow[n] for n in names})
    whole(monkeypatch, 0.8, 0.8)
    done = run("convert", "net.onnx", "--rank", "2", "--tune", "--json", "r.json")
    assert done.code == 0
    assert "3 of 5 layers split" in done.out
    layers = json.loads((work / "r.json").read_text())["layers"]
    told = "measured: the network as a whole takes 0.80 x the time with it"
    assert {layer["reason"] for layer in layers if layer["rank"]} == {told}


def test_a_network_that_is_slower_as_a_whole_is_given_up_half_by_half(run, monkeypatch, fast):
    whole(monkeypatch, 1.0, 1.3, 0.9)
    code, out, _ = outcome(run, "convert", "net.onnx", "--rank", "2", "--tune")
    assert code == 0
    assert "1 of 5 layers split" in out
    assert "the network as a whole takes 1.30 x the original's time (1.30 to 1.30)" in out


def test_what_may_be_slower_for_all_that_was_measured_is_given_up(run, monkeypatch, fast):
    doubtful = Interval(0.99, 0.93, 1.08, 0.95)
    whole(monkeypatch, 1.0, doubtful, Interval(0.9, 0.85, 0.97, 0.95))
    code, out, _ = outcome(run, "convert", "net.onnx", "--rank", "2", "--tune")
    assert code == 0
    assert "1 of 5 layers split" in out
    assert "takes 0.99 x the original's time (0.93 to 1.08)" in out


def test_damage_is_measured_once_for_all_forms_that_are_tried(run, monkeypatch, fast):
    asked = []
    prices = Calibrated.prices

    def counted(self, *args):
        asked.append(args)
        return prices(self, *args)

    monkeypatch.setattr(Calibrated, "prices", counted)
    done = run("convert", "net.onnx", "--macs", "0.6", "--tune", "--calibrate", "synthetic",
               "--calibration-images", 8)  # fmt: skip
    assert done.code == 0, done.err
    assert len(asked) == 1


def test_a_dry_run_plans_what_a_conversion_does(run, work, monkeypatch, fast):
    whole(monkeypatch, *[1.0, 1.3, 0.9] * 2)
    wanted = ("convert", "net.onnx", "--rank", "2", "--tune")
    assert run(*wanted, "--dry-run", "-o", "plan.json").code == 0
    assert run(*wanted, "--json", "r.json").code == 0
    planned, done = (json.loads((work / name).read_text()) for name in ("plan.json", "r.json"))
    assert [layer["name"] for layer in planned["layers"]] == [
        layer["name"] for layer in done["plan"]["layers"]
    ]
    assert len(planned["layers"]) == 1


def whole(monkeypatch, *ratios):
    """The network as a whole takes these shares of the time before, call after call.

    First the table's plan beside the measured one, then what is kept beside the original.
    """
    waiting = list(ratios)
    timed = sure(lambda names, opened: {"converted": waiting.pop(0)})
    monkeypatch.setattr("dacconv.timing.whole.ratios_to_first", timed)


def test_a_budget_of_time(run, work, fast, monkeypatch):
    monkeypatch.setattr(
        "dacconv.timing.whole.side_by_side",
        lambda names, opened: {"model": 4.0},
    )
    whole(monkeypatch, *[1.0] * 9)
    code, _, _ = outcome(
        run, "convert", "net.onnx", "--latency", "0.75", "--calibrate", "none", "--json", "r.json"
    )
    assert code == 0
    report = json.loads((work / "r.json").read_text())
    assert sum(layer["rank"] is not None for layer in report["layers"]) == 2
    code, _, err = outcome(
        run, "convert", "net.onnx", "--latency", "0.1", "--calibrate", "none", "--force"
    )
    assert code == 2
    assert "10.0% of the latency cannot be reached" in err


def test_state_dicts_keep_two_convs_unless_asked(run, work):
    assert run("convert", "net.pth", "--rank", "2", "-o", "out.pth").code == 0
    assert {"conv2.0.weight", "conv2.1.weight"} <= set(dacconv.load(work / "out.pth").source.state)


def test_a_budget_of_time_is_calibrated_like_any_other(run, work, fast, monkeypatch):
    monkeypatch.setattr(
        "dacconv.timing.whole.side_by_side", lambda names, opened: dict.fromkeys(names, 4.0)
    )
    done = run("convert", "net.onnx", "--latency", "0.75", "--calibrate", "synthetic",
               "--calibration-images", 8)  # fmt: skip
    assert done.code == 0, done.err
    assert "calibrated on" in done.out
