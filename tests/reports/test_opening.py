"""Reports open with the verdict, the speed and the command to try next."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dacconv.conversion.pipeline import Conversion
from dacconv.conversion.report import Report
from dacconv.conversion.verification import _latency
from dacconv.graph.types import Choice, Plan, Provenance
from dacconv.reports import html, markdown
from dacconv.reports.opening import opening as opening_of
from dacconv.settings import Settings
from tests.cli.test_app import ARCH
from tests.conversion.test_gates import report
from tests.jobs.test_write import break_writer


def opening(text: str) -> list[str]:
    return text.splitlines()[:3]


@pytest.fixture
def ruin(monkeypatch):
    """Let every conversion end in a network of other weights."""
    save = Conversion.save

    def ruined(self, path, *, force=False):
        files = save(self, path, force=force)
        model = onnx.load(files[0])
        for tensor in model.graph.initializer:
            if tensor.name == "fc.weight":
                tensor.CopyFrom(numpy_helper.from_array(
                    -3 * numpy_helper.to_array(tensor), tensor.name))  # fmt: skip
        onnx.save(model, files[0])
        return files

    monkeypatch.setattr(Conversion, "save", ruined)
    monkeypatch.setattr("dacconv.jobs.write.compare_weights", lambda a, b: type(
        "Same", (), {"problem": ""}))  # fmt: skip


def test_the_terminal_opens_with_three_lines(run, work):
    done = run("convert", "net.onnx", "--rank", 2)
    verdict, speed, following = opening(done.out)
    assert re.match(r"verdict: degraded: .*relative error 0\.\d+ on 64 drawn images", verdict)
    assert re.match(r"speed: (no measurable|SLOWER|[\d.]+ x as fast)", speed)
    words = shlex.split(following.removeprefix("next: "))
    assert words[:3] == ["dacconv", "convert", "net.onnx"]
    assert words[3] == "--macs"
    text = (run("convert", "net.onnx", "--rank", 2, "--force", "--markdown", "-")).out
    assert f"- {verdict[:18]}" in text
    page = run("convert", "net.onnx", "--rank", 2, "--force", "--html", "-").out
    assert f"<li>{verdict[:18]}" in page
    data = json.loads(run("convert", "net.onnx", "--rank", 2, "--force", "--json", "-").out)
    assert data["verdict"]["level"] == "degraded"
    assert run("inspect", "net.onnx").out.startswith("layer")


def measured(speedups: list[float], error: float = 0.05, **options: object) -> Report:
    """A report of a conversion that leaves 60 of 100 MACs."""
    latency = _latency([(speedup, 1.0) for speedup in speedups], 1)
    made = report(60, error)
    check = replace(made.verification, latency=latency)
    rows = tuple(replace(row, rank=(1,), full_rank=(9,)) for row in made.rows)
    return replace(
        made,
        rows=rows,
        verification=check,
        plan=Plan((Choice("a", "dac", (1,), form="sum"),)),
        provenance=Provenance("1", "0", "n.onnx", options),
    )


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (measured([1.5] * 20, rank=2), "speed: 1.50 x as fast as the original (1.50 to 1.50)"),
        (measured([0.8] * 20, rank=2), "speed: SLOWER than the original: 1.25 x the time"),
        (measured([0.7, 1.5] * 10, rank=2), "speed: no measurable difference (1.10 x as fast"),
        (
            measured([1.5] * 20, macs="50%"),
            "MISSED: the budget of MACs: 60.0 % is left, not 50",
        ),
        (measured([1.25] * 20, latency=0.6), "MISSED: the budget of time: 80.0 % is left, not 60"),
    ],
)
def test_what_is_slower_or_missed_stands_at_the_top(made, words):
    assert any(line.startswith(words) for line in opening_of(made).lines[:3])
    assert words in markdown.render(made)
    assert any(line.startswith(words) for line in html.page(made).opening)


@pytest.mark.parametrize(
    "made",
    [
        measured([1.5] * 20, macs=0.6),
        measured([2.0] * 20, latency=0.6),
        measured([1.2, 3.0] * 10, latency=0.6),  # within the interval
    ],
)
def test_a_budget_that_is_kept_is_not_missed(made):
    assert "MISSED" not in "\n".join(opening_of(made).lines)


@pytest.mark.parametrize(
    ("made", "following"),
    [
        (measured([1.5] * 20, error=0.5, rank=2), "--macs 0.6"),
        (measured([1.5] * 20, error=1.5, rank=2), "--macs 0.6"),
        (measured([1.5] * 20, error=0.5, macs=0.6), "--macs 0.7"),  # every method was tried
        (measured([1.5] * 20, error=0.5, macs=0.6, method="auto"), "--macs 0.7"),
        (measured([1.5] * 20, error=0.5, macs=0.6, method="dac"), "--macs 0.6"),
        (measured([1.5] * 20, error=0.5, macs=0.6, calibrate="none"), "--macs 0.6"),
        (measured([1.5] * 20, error=0.5, latency=0.6), "--latency 0.7"),
        (measured([0.8] * 20, macs=0.6), "--macs 0.6 --tune"),
        (measured([1.5] * 20, macs=0.6), "--macs 0.5"),
    ],
)
def test_what_to_try_next(made, following):
    assert opening_of(made).lines[-1] == f"next: dacconv convert n.onnx {following}"


def test_check_opens_with_verdict_and_speed(run):
    done = run("check", "net.onnx", "net.onnx")
    assert done.out.startswith("verdict: equal: relative error 0 on 64 drawn images\nspeed: ")
    assert "<li>verdict: equal" in run("check", "net.onnx", "net.onnx", "--html", "-").out


def test_details_are_behind_v(run):
    plain = run("convert", "net.onnx", "--rank", 2).out
    verbose = run("convert", "net.onnx", "--rank", 2, "--force", "-v").out
    for words in ("ShuffleNet v2's guidelines", "1 MAC = one multiply-add"):
        assert (words in plain, words in verbose) == (False, True)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("net.onnx", ("--rank", 1), "--macs 0.19"),
        ("net.onnx", ("--rank", 10**9), "--macs 0.5"),
        ("net.pth", ("--rank", 2, *ARCH), "--input-shape 1,3,12,12 --arch"),
        ("net.pth", ("--rank", 2), "name the network with --arch"),
    ],
)
def test_the_next_command_runs_in_its_place(run, model, options, words):
    lines = run("convert", model, *options).out.splitlines()
    line = next(text for text in lines if text.startswith("next: "))
    assert words in line
    typed = shlex.split(line.removeprefix("next: "))
    if typed[0] == "dacconv":
        named = {word.split("=")[0][2:].replace("-", "_") for word in typed if word[:2] == "--"}
        assert named <= {each.name for each, _ in Settings.declared("convert")}


def test_a_broken_network_is_not_written_unless_it_is_to_be_kept(run, work, ruin):
    done = run("convert", "net.onnx", "--rank", 4)
    assert (done.code, done.new) == (1, [])
    assert done.out.startswith("verdict: broken: ")
    assert "gate missed: the converted network is broken: " in done.err
    assert "nothing was written; --keep writes it all the same" in done.err
    kept = run("convert", "net.onnx", "--rank", 4, "--keep")
    assert (kept.code, kept.new) == (1, ["net.dac.onnx"])
    again = run("check", "net.onnx", "net.dac.onnx")
    assert again.code == 1
    assert again.out.startswith("verdict: broken: ")


def test_a_broken_network_among_many_fails_the_batch_and_the_release(run, work, ruin):
    (work / "two.onnx").write_bytes((work / "net.onnx").read_bytes())
    done = run("convert", "net.onnx", "two.onnx", "--rank", 4, "-O", "out")
    assert (done.code, list((work / "out").iterdir())) == (1, [])
    assert done.out.count("broken") == 2
    (work / "dacconv.toml").write_text('[jobs.one]\nmodel = "net.onnx"\nrank = 4\n')
    assert run("run").code == 1
    assert not list((work / "dist").iterdir())


def test_outputs_that_are_not_numbers_are_broken(run, work, monkeypatch):
    def fault(files):
        model = onnx.load(files[0])
        for tensor in model.graph.initializer:
            if tensor.name == "fc.bias":
                tensor.CopyFrom(numpy_helper.from_array(
                    np.full(7, np.nan, np.float32), tensor.name))  # fmt: skip
        onnx.save(model, files[0])

    break_writer(monkeypatch, fault)
    monkeypatch.setattr("dacconv.jobs.write.compare_weights", lambda a, b: type(
        "Same", (), {"problem": ""}))  # fmt: skip
    done = run("convert", "net.onnx", "--rank", 4)
    assert (done.code, done.new) == (1, [])
    assert "output scores is NaN or infinite, and the original's is not" in done.out
