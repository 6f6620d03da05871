"""The first layers in strips of rows, as a command."""

from __future__ import annotations

import json

import onnx
import pytest

from dacconv.numerics.intervals import Interval
from tests.models.strip_nets import vgg

FASTER = Interval(0.9, 0.85, 0.95, 0.95)
DOUBTFUL = Interval(0.9, 0.85, 1.05, 0.95)


@pytest.fixture
def strips(run, work, monkeypatch, tmp_path_factory):
    """A command on a network that can be run in strips, its rank and target said already."""
    proto = tmp_path_factory.mktemp("vgg")
    vgg().open(proto)
    (work / "vgg.onnx").write_bytes((proto / "net.onnx").read_bytes())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    return lambda *more: run("convert", "vgg.onnx", "--rank", 2, "-o", "out.onnx", *more)


def count(path) -> int:
    return [node.op_type for node in onnx.load(path).graph.node].count("Slice")


def test_strips_are_written_told_planned_and_reproduced(run, work, strips):
    done = strips("--strips", 3, "--json", "r.json")
    assert done.code == 0, done.err
    assert "'x' to 'v4' in 3 strips of 4 rows, whose borders repeat" in done.out
    assert count(work / "out.onnx") == 3
    report = json.loads((work / "r.json").read_text())
    assert report["plan"]["strips"] == 3
    assert report["verification"]["relative_error"] < 1
    again = run("check", "vgg.onnx", "out.onnx", "--reproduce")
    assert again.code == 0, again.out + again.err
    assert run("convert", "vgg.onnx", "--plan", "r.json", "-o", "again.onnx").code == 0
    assert onnx.load(work / "again.onnx").graph.node == onnx.load(work / "out.onnx").graph.node
    whole = ("--plan", "r.json", "-o", "whole.onnx", "--strips", 1)
    assert run("convert", "vgg.onnx", *whole).code == 0
    assert count(work / "whole.onnx") == 0


def test_the_function_is_the_same_in_strips(run, strips):
    assert strips().code == 0
    assert run("convert", "vgg.onnx", "--rank", 2, "--strips", 4, "-o", "four.onnx").code == 0
    check = run("check", "out.onnx", "four.onnx", "--max-error", 1e-6)
    assert check.code == 0, check.out


def test_what_cannot_be_is_told(run, work, strips):
    for given, told in (
        (("--strips", 13), "13 strips of 'v4', which has 12 rows"),
        (("--strips", 0), "0 is not a number above 0"),
        (("--strips", "many"), "'many' is not a whole number above 0"),
    ):
        done = strips(*given)
        assert (done.code, told in done.err, done.new) == (2, True, [])
    for name in ("net.onnx", "net.pth"):
        done = run("convert", name, "--rank", 2, "--strips", 2)
        assert done.code == 3
        assert f"{name}: cannot be run in strips" in done.err
    plan = work / "plan.json"
    plan.write_text(json.dumps({"layers": [], "strips": "all"}))
    done = run("convert", "vgg.onnx", "--plan", plan, "-o", "out.onnx")
    assert (done.code, "'strips' is no number of strips: \"all\"" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("measured", "given", "wanted"),
    [(FASTER, (), 7), (DOUBTFUL, (), 0), (FASTER, ("--strips", 1), 0)],
)
def test_tuning_takes_strips_where_the_network_is_faster_so(
    work, strips, monkeypatch, measured, given, wanted
):
    """16 x 24 x 24 x 4 bytes after the depthwise conv, in strips of 6,000 bytes at most."""
    monkeypatch.setattr("dacconv.models.onnx_strips.STRIP_BYTES", 6000)
    monkeypatch.setattr(
        "dacconv.tuning.timer.side_by_side",
        lambda names, opened: {name: 1.0 if name == "original" else 0.5 for name in names},
    )
    monkeypatch.setattr("dacconv.models.onnx_timing.around", lambda *rest: 0.0)
    waiting = [Interval(1, 1, 1, 0.95), FASTER, measured]
    if wanted == 0 and given:
        waiting.pop()
    monkeypatch.setattr(
        "dacconv.tuning.whole.over_first", lambda names, opened: {"converted": waiting.pop(0)}
    )
    done = strips("--tune", *given)
    assert done.code == 0, done.err
    assert count(work / "out.onnx") == wanted
