"""Where no rank or budget is named, the largest saving that reaches the goal is searched for."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import replace

import numpy as np
import pytest

import dacconv
from dacconv.conversion.verdict import Verdict
from dacconv.errors import UsageError
from dacconv.jobs import search
from dacconv.jobs.convert import convert_model
from dacconv.jobs.search import Goal, goal_of, needs_search, percent
from dacconv.settings import Settings
from dacconv.support.progress import silent

QUICK = ("--calibrate", "none", "--seconds", 1000, "--samples", 8)


@pytest.fixture
def usable_above(monkeypatch):
    """Let a conversion be usable if it keeps more than a share of the MACs."""

    def set_limit(share: float, *, slower: bool = False) -> None:
        monkeypatch.setattr(
            search, "verdict_on", lambda check: Verdict("usable", f"{check.samples} samples")
        )
        original = search.verify

        def verify(model, converted, options, progress):
            check = original(model, converted, options, progress=progress)
            macs = [sum(layer.macs() for layer in net_layers(m)) for m in (model, converted)]
            left = macs[1] / macs[0]
            monkeypatch.setattr(Goal, "reached", lambda self, check: left > share)
            return check

        monkeypatch.setattr(search, "verify", verify)

    def net_layers(model):
        class Sized:
            def __init__(self, node):
                self.node = node

            def macs(self):
                from dacconv.graph.cost import layer_cost

                return layer_cost(self.node.geometry).macs or 0

        return [Sized(node) for node in model.graph().nodes if node.geometry is not None]

    return set_limit


@pytest.mark.parametrize(
    ("value", "points", "share"),
    [("93", False, 0.93), (93, False, 0.93), ("93%", False, 0.93), (0.93, False, 0.93),
     ("93.5 %", False, 0.935), ("0.5", True, 0.005), ("2%", True, 0.02), (0, True, 0.0)],
)  # fmt: skip
def test_percentages(value, points, share):
    assert percent(value, "--x", points=points) == pytest.approx(share)


@pytest.mark.parametrize("value", ["many", "101", "-1", "nan", ""])
def test_what_is_no_percentage(value):
    with pytest.raises(UsageError, match="--x"):
        percent(value, "--x")


@pytest.mark.parametrize(
    ("values", "searched"),
    [({}, True), ({"max_drop": 1}, True), ({"target_accuracy": 90}, True), ({"rank": 1}, False),
     ({"macs": 0.5}, False), ({"plan": "x"}, False),
     ({"first_k": 1, "method": "dac"}, True), ({"vbmf": True}, False),
     ({"precision": "int8"}, False), ({"precision": "int8", "max_drop": 1}, True)],
)  # fmt: skip
def test_what_leaves_the_saving_open(values, searched):
    assert needs_search(Settings(**values)) == searched


def test_goals():
    assert goal_of(Settings()).seconds == 60
    assert goal_of(Settings(seconds=5)).seconds == 5
    both = goal_of(Settings(target_accuracy="93", max_drop=0.5, data="x.npz"))
    assert (both.accuracy, both.drop) == (0.93, 0.005)
    assert both.text.startswith("a top-1 of at least 93 % and a top-1 of at most 0.5 points less")
    with pytest.raises(UsageError, match="needs labelled images"):
        goal_of(Settings(max_drop=1))
    with pytest.raises(UsageError, match="not a time above 0"):
        goal_of(Settings(seconds=0))


@pytest.mark.parametrize("limit", [0.25, 0.72])
def test_the_largest_saving_that_reaches_the_goal_is_written(run, work, usable_above, limit):
    usable_above(limit)
    done = run("convert", "net.onnx", *QUICK, "--json", "r.json")
    assert done.code == 0, done.err
    data = json.loads((work / "r.json").read_text())
    trials = data["search"]["trials"]
    reached = [trial["left"] for trial in trials if trial["reached"]]
    assert all((trial["left"] or 0) > limit for trial in trials if trial["reached"])
    left = data["totals"]["macs"]["after"] / data["totals"]["macs"]["before"]
    assert left == pytest.approx(min(reached))
    assert left < limit + 0.15
    assert len(trials) <= 5
    line = next(t for t in done.out.splitlines() if t.startswith("this is: "))
    assert f"--macs {data['provenance']['options']['macs']} " in line
    assert "searched for the largest saving that gives a network that is usable" in done.out
    for trial in trials:
        assert trial["options"] in done.out


def test_the_command_that_is_printed_gives_the_same_file(run, work, usable_above):
    usable_above(0.5)
    done = run("convert", "net.onnx", *QUICK, "-o", "a.onnx")
    line = next(t for t in done.out.splitlines() if t.startswith("this is: "))
    words = shlex.split(line.removeprefix("this is: "))
    assert words[:2] == ["dacconv", "convert"]
    run(*words[1:], "-o", "b.onnx")
    assert (work / "a.onnx").read_bytes() == (work / "b.onnx").read_bytes()


def test_calibrated_budgets_follow_those_by_weights_alone(work, usable_above, monkeypatch):
    usable_above(0.6)
    monkeypatch.setattr(search.pipeline, "calibrate", lambda *args: ("the inputs", "drawn"))
    tried = []

    def carry_out(settings, inputs, progress):
        tried.append((settings.calibrate, inputs and inputs[0]))
        plain = replace(settings, calibrate="none", method="spatial")
        return convert_model(model, plain)[1]

    model = dacconv.load(work / "net.onnx")
    chosen, conversion = search.best_saving(model, Settings(samples=8), carry_out, silent)
    count = tried.index((None, "the inputs"))
    assert tried == [("none", None)] * count + [(None, "the inputs")] * (len(tried) - count)
    assert 0 < count < len(tried) <= 8
    assert chosen.calibrate is None or float(chosen.macs) == 0.7
    assert conversion.report.search is not None
    assert len(conversion.report.search.trials) == len(tried)


def test_no_saving_reaches_the_goal(run, work, usable_above):
    usable_above(2.0)
    done = run("convert", "bn.onnx", *QUICK) if (work / "bn.onnx").exists() else None
    plain = run("convert", "net.onnx", *QUICK)
    for result in filter(None, (done, plain)):
        assert ("only what costs nothing was merged" in result.out) == (result.code == 0)
        assert result.code in (0, 3)
        if result.code == 3:
            assert "no saving gives a network that is usable" in result.err
            assert result.new == []


def test_time_ends_the_search(run, work, monkeypatch):
    started = time.monotonic()
    done = run("convert", "net.onnx", "--seconds", 0.001)
    assert time.monotonic() - started < 60
    assert done.code in (0, 3)
    assert "--seconds searches for longer" in done.out + done.err


def test_a_model_that_cannot_be_verified_needs_a_rank(run):
    done = run("convert", "net.pth")
    assert done.code == 2
    assert "one way to choose ranks is needed, none given; none can be searched for" in done.err
    assert run("convert", "net.onnx", "--no-verify").code == 2


def labelled(work, share: float) -> None:
    """Images of which the original gets about ``share`` right."""
    model = dacconv.load(work / "net.onnx")
    (spec,) = model.inputs()
    x = np.random.default_rng(0).standard_normal((64, *spec.shape[1:])).astype(np.float32)
    run = model.runner()
    scores = [next(iter(run({spec.name: image[None]}).values())) for image in x]
    y = np.array([score.reshape(len(score), -1)[0].argmax() for score in scores])
    wrong = round(64 * (1 - share))
    y[:wrong] = (y[:wrong] + 1) % 7
    np.savez(work / "data.npz", x=x, y=y)


def test_an_accuracy_is_kept(run, work):
    labelled(work, 0.75)
    done = run("convert", "net.onnx", "--max-drop", 10, "--data", "data.npz", *QUICK, "--json",
               "r.json")  # fmt: skip
    data = json.loads((work / "r.json").read_text()) if (work / "r.json").exists() else None
    assert done.code in (0, 3), done.err
    if done.code == 0:
        assert data is not None
        before, after = data["verification"]["top1"]
        assert before - after <= 0.1
    missing = run("convert", "net.onnx", "--max-drop", 1, *QUICK, "-o", "b.onnx")
    assert (missing.code, "--max-drop: needs labelled images" in missing.err) == (2, True)


def test_an_accuracy_that_the_original_has_not(run, work):
    labelled(work, 0.75)
    done = run("convert", "net.onnx", "--target-accuracy", 90, "--data", "data.npz", *QUICK)
    assert done.code == 3
    assert "the original itself has a top-1 of 75.0%" in done.err
    x = np.load(work / "data.npz")["x"]
    np.savez(work / "bare.npz", x=x)
    bare = run("convert", "net.onnx", "--max-drop", 1, "--data", "bare.npz", *QUICK)
    assert (bare.code, "no labels" in bare.err) == (2, True)


def test_a_goal_excludes_a_rank(run):
    done = run("convert", "net.onnx", "--rank", 2, "--max-drop", 1)
    assert (done.code, "it excludes --rank" in done.err) == (2, True)


def test_a_slower_network_does_not_reach_the_goal():
    from tests.reports.test_opening import measured

    check = measured([0.8] * 20, rank=2).verification
    assert check is not None
    assert not Goal("", 0.1, 1).reached(check)
    fast = measured([1.5] * 20, rank=2).verification
    assert fast is not None
    assert Goal("", 0.1, 1).reached(fast)
    assert not Goal("", 0.1, 1, drop=0.01).reached(replace(fast, top1=(0.9, 0.8)))
    assert Goal("", 0.1, 1, drop=0.11).reached(replace(fast, top1=(0.9, 0.8)))
