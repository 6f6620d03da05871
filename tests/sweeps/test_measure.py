"""Points are measured as a conversion and its verification would measure them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dacconv
from dacconv.api import sweep
from dacconv.conversion.verification import CheckOptions
from dacconv.decompositions import METHODS
from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.base import Divisible
from dacconv.sweeps import prefixes
from dacconv.sweeps.measure import Bench, Setup
from dacconv.sweeps.points import Grid, points
from dacconv.sweeps.results import without_notes
from tests import cli_nets
from tests.conftest import ROOT

HERE = ROOT / "tests"
ARCH = {"arch": f"{HERE / 'cli_nets.py'}:SmallNet", "input_shapes": {"": (1, 3, 12, 12)}}
MODES = ("single", "first-k", "last-k", "uniform")


@pytest.fixture(scope="module")
def nets(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nets")
    cli_nets.write_all(folder)
    return folder


def close(mine: float | None, theirs: float | None, tolerance: float = 1e-4) -> bool:
    if mine is None or theirs is None:
        return mine is theirs
    return abs(mine - theirs) <= tolerance * max(abs(theirs), 1e-2)


@pytest.mark.parametrize("name", ["net.onnx", "net.pth"])
@pytest.mark.parametrize("fuse", [True, False])
def test_every_point_is_what_converting_and_verifying_it_gives(nets, name, fuse):
    model = dacconv.load(nets / name, **(ARCH if name == "net.pth" else {}))
    found = sweep(model, ranks=(2, 9), mode=MODES, samples=5, fuse=fuse)
    assert len(found.points) == 6 + 2 * 6 + 2
    for row in found.points[::2] if fuse else found.points[::5]:
        done = dacconv.convert(model, row.plan, fuse=fuse)
        check = dacconv.verify(model, done.model, samples=5)
        assert close(row.output_error, check.relative_error), row.label
        assert row.agreement == check.agreement
        assert (row.macs, row.params) == (done.report.after.macs, done.report.after.params)
    exact = [row for row in found.points if row.rank == 9 and row.mode == "single"]
    assert all(row.output_error < 1e-5 and row.kernel_error < 1e-6 for row in exact)
    assert found.original.output_error == 0
    assert found.original.agreement == 1


def test_points_are_written_in_the_forms_of_a_conversion(nets):
    model = dacconv.load(nets / "net.onnx")
    bench = Bench(model, Setup(CheckOptions(samples=1)))
    for form in ("multiplier", "sum", "concat"):
        plan = dacconv.plan(model, rank=2, form=form)
        mine = bench.variants.convert(plan).graph()
        theirs = dacconv.convert(model, plan).model.graph()
        assert Counter(node.op for node in mine.nodes) == Counter(n.op for n in theirs.nodes)
    assert Counter(node.op for node in mine.nodes)["concat"] > 0


def test_scales_of_kernels_and_calibration_are_those_of_a_conversion(nets):
    model = dacconv.load(nets / "net.onnx")
    found = sweep(model, ranks=(2,), mode="uniform", samples=4, kernel_scale="unit")
    done = dacconv.convert(model, found.points[0].plan, kernel_scale="unit")
    assert close(
        found.points[0].output_error, dacconv.verify(model, done.model, samples=4).relative_error
    )
    found = sweep(model, ranks=(2,), mode="uniform", samples=4, calibrate="synthetic")
    inputs, told = dacconv.calibrate(model, "synthetic")
    done = dacconv.convert(model, found.points[0].plan, calibrated=inputs)
    assert close(
        found.points[0].output_error, dacconv.verify(model, done.model, samples=4).relative_error
    )
    assert told in found.header["inputs"]


def test_budgets_are_kept_and_are_those_of_convert(nets):
    model = dacconv.load(nets / "net.onnx")
    found = sweep(model, mode="budget", budgets=(0.5, 0.8), calibrate="none", samples=2)
    for row, share in zip(found.points, (0.5, 0.8), strict=True):
        assert row.macs <= share * found.original.macs
        assert row.choices == without_notes(dacconv.plan(model, macs=share).choices)


def test_a_shared_prefix_is_run_once(nets, monkeypatch):
    """One run to each layer for all its ranks, one through it for each, the rest made once."""
    model = dacconv.load(nets / "net.onnx")
    bench = Bench(model, Setup(CheckOptions(samples=3)))
    layers = [each for each in bench.variants.layers if METHODS["dac"].refuses(each) is None]
    grid = points(Grid(("single",), (1, 2, 3)), bench.variants.layers, layers, None,
                  allow_costlier=False)  # fmt: skip
    calls: list[int] = []
    resume = type(model).resume

    def counted(self, given, wanted=None, **more):
        calls.append(0 if wanted is None else 1)
        return resume(self, given, wanted, **more)

    monkeypatch.setattr(type(model), "resume", counted)
    rows = list(bench.measure(grid))
    assert sorted(row.label for row in rows) == sorted(point.label for point in grid)
    # two prefixes, for the second and the third layer, and the nine points up to the next layer
    assert calls.count(1) == 2 + 9
    # what comes after each of the three layers
    assert calls.count(0) == 3


def test_later_points_go_on_from_where_earlier_ones_began(nets, monkeypatch):
    model = dacconv.load(nets / "net.onnx")
    bench = Bench(model, Setup(CheckOptions(samples=3)))
    layers = [each for each in bench.variants.layers if METHODS["dac"].refuses(each) is None]
    grid = points(Grid(("single",), (1, 2)), bench.variants.layers, layers, None,
                  allow_costlier=False)  # fmt: skip
    together = {
        row.label: row for row in Bench(model, Setup(CheckOptions(samples=3))).measure(grid)
    }
    starts: list[bool] = []
    resume = type(model).resume

    def noted(self, given, wanted=None, **more):
        starts.append("image" in given)
        return resume(self, given, wanted, **more)

    monkeypatch.setattr(type(model), "resume", noted)
    from_inputs = []
    for at in range(0, len(grid), 2):  # a layer at a time, and then the first one again
        starts.clear()
        for row in bench.measure(grid[at : at + 2]):
            assert close(row.output_error, together[row.label].output_error)
        from_inputs.append(any(starts))
    assert from_inputs == [True, True, False]
    assert len(list(bench.measure(grid[:2]))) == 2


def test_what_is_run_has_the_outputs_of_what_is_written(nets):
    model = dacconv.load(nets / "net.onnx")
    variants = Bench(model, Setup(CheckOptions(samples=1))).variants
    feeds = {"image": cli_nets.images(3)}
    for form in ("multiplier", "sum"):
        plan = dacconv.plan(model, rank=2, form=form)
        equivalent, converted = variants.equivalent(plan), variants.convert(plan)
        convs, others = (
            Counter(n.op for n in m.graph().nodes)["conv"] for m in (equivalent, converted)
        )
        assert convs < others
        mine, theirs = equivalent.runner()(feeds), converted.runner()(feeds)
        for name, array in theirs.items():
            np.testing.assert_allclose(mine[name], array, rtol=1e-4, atol=1e-5)


def test_a_model_that_cannot_be_run_in_parts_is_run_whole(nets, monkeypatch):
    model = dacconv.load(nets / "net.onnx")
    expected = sweep(model, ranks=(1, 2), samples=3)

    def refused(self, given, wanted=None, **more):
        raise UnsupportedError("not in parts")

    monkeypatch.setattr(type(model), "resume", refused)
    found = sweep(model, ranks=(1, 2), samples=3)
    for mine, theirs in zip(found.rows, expected.rows, strict=True):
        assert close(mine.output_error, theirs.output_error)


def test_several_passes_over_the_inputs_change_nothing(nets, monkeypatch):
    model = dacconv.load(nets / "net.onnx")
    expected = sweep(model, ranks=(1, 2), mode=("single", "last-k"), samples=7)
    monkeypatch.setattr("dacconv.sweeps.judges.CHUNK", 2)
    monkeypatch.setattr("dacconv.sweeps.judges.PASS_BYTES", 1)
    found = sweep(model, ranks=(1, 2), mode=("single", "last-k"), samples=7)
    for mine, theirs in zip(found.rows, expected.rows, strict=True):
        assert mine.label == theirs.label
        assert close(mine.output_error, theirs.output_error)
        assert mine.agreement == theirs.agreement


def test_weights_alone_have_kernel_errors_and_nothing_else(nets):
    found = sweep(dacconv.load(nets / "net.pth"), ranks=(1, 2))
    assert found.points
    assert {row.output_error for row in found.rows} == {None}
    assert all(row.macs is None and row.params > 0 for row in found.points)
    assert found.quality.name == "kernel_error"
    assert "not run" in found.header["inputs"]


def test_live_values_end_a_residual_network_where_they_should(assets):
    model = dacconv.load(assets / "fashion.onnx")
    x = np.random.default_rng(0).standard_normal((3, 1, 28, 28)).astype(np.float32)
    assert_parts_are_the_whole(model, {"image": x})


def assert_parts_are_the_whole(model, feeds):
    """Run up to every conv and from there on."""
    assert isinstance(model, Divisible)
    names = [node.name for node in model.graph().nodes if node.op == "conv"]
    expected = model.runner()(feeds)
    for name in names:
        live = model.live(name)
        middle = model.resume(feeds, live)(feeds)
        assert set(middle) == set(live)
        before = {key: value.copy() for key, value in middle.items()}
        actual = model.resume(middle)(middle)
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(actual[key], value, rtol=1e-4, atol=1e-5)
        for key, value in before.items():
            np.testing.assert_array_equal(middle[key], value)
    with pytest.raises(UnsupportedError, match="neither given nor computed"):
        model.resume({})


class InPlace(nn.Module):
    """A residual network that overwrites what it can; ``loose`` sees it by a view."""

    def __init__(self, loose: bool) -> None:
        super().__init__()
        self.loose = loose
        self.stem, self.one, self.two = (
            nn.Sequential(nn.Conv2d(c, 6, 3, padding=1), nn.BatchNorm2d(6)) for c in (3, 6, 6)
        )
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(6, 4)

    def forward(self, x):
        x = self.relu(self.stem(x))
        y = self.one(x)
        view = y.flatten(2) if self.loose else None
        z = self.two(self.relu(y))
        z += x
        if self.loose:
            z = z + view.mean(2)[:, :, None, None]
        scores = self.head(self.relu(z).mean((2, 3)))
        return {"scores": scores, "sum": scores.sum()}


@pytest.fixture(params=[False, True], ids=["tight", "loose"])
def in_place(request, tmp_path):
    torch.manual_seed(0)
    net, x = InPlace(request.param).eval(), torch.randn(2, 3, 8, 8)
    sizes = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=sizes), path)
    return dacconv.load(path), request.param


def test_programs_are_run_in_parts(in_place):
    model, loose = in_place
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)}
    if loose:
        with pytest.raises(UnsupportedError, match="overwrites what others may read"):
            model.resume(feeds)
    else:
        assert_parts_are_the_whole(model, feeds)


def test_points_of_programs_are_what_converting_them_gives(in_place):
    model, _ = in_place
    found = sweep(model, ranks=(1, 6), mode=("single", "last-k"), samples=5)
    assert len(found.points) == 12
    for row in found.points:
        check = dacconv.verify(model, dacconv.convert(model, row.plan).model, samples=5)
        assert close(row.output_error, check.relative_error), row.label


def test_words_with_a_common_beginning_share_it():
    """The order of runs, on words alone: every leaf before the branches beside it."""
    assert prefixes._common(["abc", "abd", "ab"[:2] + "e"]) == 2
    assert prefixes._common([(1, 2), (1, 2)]) is None
    assert prefixes._common([(None, 2), (1, 2)]) == 0


def test_latency_and_modes_that_are_none(nets):
    model = dacconv.load(nets / "net.onnx")
    found = sweep(model, ranks=(2,), mode="uniform", samples=2, bench=True)
    assert found.points[0].latency.rounds >= 10
    assert found.original.latency.original_ms > 0
    for wrong in ({"mode": "all"}, {"mode": "budget"}, {"ranks": ()}):
        with pytest.raises(UsageError):
            sweep(model, samples=2, **wrong)
    with pytest.raises(UsageError, match="without other work on the machine"):
        sweep(model, ranks=(1,), samples=2, bench=True, jobs=2)
