"""Errors count only beyond the runtime's own noise: the original against itself."""

from __future__ import annotations

import numpy as np
import onnxruntime  # noqa: F401 (not timed by what follows)
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dacconv.conversion.gates import Gates, missed
from dacconv.conversion.noise import STEP, error_beyond_noise, moved, own_noise
from dacconv.conversion.verdict import is_lossless, verdict_on
from dacconv.conversion.verification import CheckOptions, verify
from dacconv.graph.findings import OutputCheck
from dacconv.graph.types import ValueSpec
from dacconv.jobs.convert import compare_files, convert_file, fuse_file
from dacconv.reports import words
from dacconv.settings import Settings
from tests.conversion.test_verification import report
from tests.onnx_nets import model, node, save, weights


class Net:
    """A model of one function of ``x``; ``noise`` is added to its outputs on every run."""

    path, runtime, runnable = "net", "numpy", None

    def __init__(self, function, noise=0.0):
        self.function, self.noise, self.rng = function, noise, np.random.default_rng(0)

    def inputs(self):
        return (ValueSpec("x", (1, 64)),)

    def runner(self, *, threads=None):
        def run(feeds):
            y = self.function(feeds["x"])
            return {"y": (y + self.noise * self.rng.standard_normal(y.shape)).astype(np.float32)}

        return run


class Rounds(Net):
    """A model whose runtime rounds otherwise where it does not optimise."""

    def __init__(self, function, difference):
        super().__init__(function)
        self.difference = difference

    def unoptimised_runner(self, *, threads=None):
        return lambda feeds: {"y": (self.function(feeds["x"]) * (1 + self.difference))}


def compare(original, converted):
    return verify(original, converted, CheckOptions(samples=4))


def test_inputs_move_by_one_unit_in_the_last_place():
    x = np.random.default_rng(0).standard_normal((100, 10)).astype(np.float32)
    feeds = {"x": x, "ids": np.arange(5), "zero": np.zeros(3, np.float32),
             "large": np.array([np.finfo(np.float32).max, np.inf, np.nan], np.float32)}  # fmt: skip
    after = moved(feeds)
    change = np.abs(after["x"] / x - 1)
    assert change.min() > 0
    assert change.max() < 2.5 * STEP
    assert all(after[name].dtype == feeds[name].dtype for name in feeds)
    for name in ("ids", "zero"):
        assert (after[name] == feeds[name]).all()
    assert np.isfinite(after["large"][0])
    assert all((moved(feeds, 3)[n] == moved(feeds, 3)[n]).all() for n in ("x", "zero"))


def test_noise_is_measured_on_moved_inputs_and_without_optimisation():
    feeds = [{"x": np.ones((1, 64), np.float32)}] * 3
    calm = Net(lambda x: x)
    steep = Net(lambda x: 1e4 * (x - 1) + 1)
    for net, low, high in ((calm, 1e-8, 1e-6), (steep, 1e-4, 1e-2)):
        noise = own_noise(net, net.runner(), feeds, thorough=False)["y"]
        assert low < noise.error < high
    rounds = Rounds(lambda x: x, 0.01)
    assert own_noise(rounds, rounds.runner(), feeds, thorough=True)["y"].error == pytest.approx(
        0.01, rel=0.01
    )
    assert own_noise(rounds, rounds.runner(), feeds, thorough=False)["y"].error < 1e-6


@pytest.mark.parametrize(
    ("error", "noise", "lossless", "level"),
    [
        (5e-5, None, True, "equal"),
        (2e-4, None, False, "usable"),
        (2e-4, 1e-4, True, "equal"),
        (1e-2, 1e-2, True, "equal"),
        (4e-2, 1e-2, False, "usable"),
        (0.65, 0.5, True, "unknown"),  # chaotic: nothing can be seen
        (0.65, 0.1, False, "degraded"),
        (1.3, 0.6, True, "unknown"),
        (1.3, 0.1, False, "broken"),
        (0.3, 1e-6, False, "degraded"),
    ],
)
def test_levels(error, noise, lossless, level):
    from tests.conversion.test_verdict import check

    found = check(error, None, output={"noise": noise})
    assert is_lossless(found) == lossless
    verdict = verdict_on(found)
    assert verdict.level == level
    assert ("against itself" in verdict.reason) == (lossless and error > 1e-4)
    sentences = missed(report(found), Gates(max_error=1e-4))
    assert bool(sentences) == (not lossless)
    if noise and not lossless:
        assert f"rounding alone: {noise:.2g}" in sentences[-1]


def output(error, noise, *, varies=False):
    return OutputCheck("y", (1,), "float32", not varies, error, error, None,
                       noise=noise, varies=varies)  # fmt: skip


def test_each_output_has_its_own_noise():
    """A chaotic output does not excuse an error of another one."""
    outputs = (output(0.6, 0.5), output(0.3, 1e-6))
    assert error_beyond_noise(0.6, outputs) == 0.3
    assert error_beyond_noise(0.6, (output(0.6, 0.5), output(1e-7, 1e-7))) == 0.0
    assert error_beyond_noise(None, (output(0.6, 0.5), output(None, 1e-7))) is None


def test_a_shape_that_depends_on_rounding_is_not_the_conversion_s():
    assert error_beyond_noise(None, (output(None, None, varies=True), output(0.3, 1e-6))) == 0.3
    assert error_beyond_noise(None, (output(None, None, varies=True),)) is None

    def boxes(x):  # as many as there are scores above a limit that many of them have
        return x[0][(x[0] * np.float32(1e7) % 1) > 0.5]

    result = compare(Net(boxes), Net(lambda x: boxes(x)[1:]))
    assert result.outputs[0].varies
    assert verdict_on(result).level == "unknown"
    assert "depends on rounding" in verdict_on(result).reason
    assert "depends on rounding" in missed(report(result), Gates(max_error=1.0))[0]
    steady = compare(Net(lambda x: x), Net(lambda x: x[:, 1:]))
    assert not steady.outputs[0].varies
    assert verdict_on(steady).level == "broken"


@given(st.floats(1e-3, 0.5))
def test_an_error_beyond_the_noise_is_always_seen(scale):
    """A wrong conversion of a calm model is refused however the noise is measured."""
    result = compare(Net(lambda x: x), Net(lambda x: x * (1 + scale)))
    assert not is_lossless(result)
    assert result.noise < 1e-6


def detector(wrong=0.0):
    """Scores of about 1e-7, which ONNX Runtime's Sigmoid computes to 1e-2 of themselves."""
    rng = np.random.default_rng(0)
    constants = {
        "w": weights(8, 3, 3, 3), "scale": rng.uniform(0.5, 2, 8), "shift": rng.normal(size=8),
        "mean": rng.normal(size=8), "var": rng.uniform(0.1, 2, 8),
        "head": weights(4, 8, 1, 1) * 0.05, "bias": np.full(4, -15.0 + wrong),
    }  # fmt: skip
    nodes = [
        node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4),
        node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"], name="bn"),
        node("Relu", ["n"], ["r"]),
        node("Conv", ["r", "head", "bias"], ["z"], name="head"),
        node("Sigmoid", ["z"], ["y"]),
    ]
    constants = {name: array.astype(np.float32) for name, array in constants.items()}
    return model(nodes, constants, inputs={"x": (1, 3, 16, 16)})


def test_a_detector_with_tiny_scores_is_fused(tmp_path):
    outcome = fuse_file(save(detector(), tmp_path), Settings())
    check = outcome.report.verification
    assert check.relative_error > 1e-4
    assert check.noise > 1e-4
    assert outcome.report.missed == ()
    assert outcome.written
    assert any("against itself" in line for line in words.verification(check))


def test_check_and_convert_measure_the_noise_too(tmp_path):
    first = save(detector(), tmp_path)
    second = save(detector(), tmp_path, "same.onnx")
    wrong = save(detector(0.3), tmp_path, "wrong.onnx")
    gate = Settings(max_error=1e-4)
    verification, gates = compare_files(first, second, gate)
    assert (verification.noise > 0, gates) == (True, ())
    verification, gates = compare_files(first, wrong, gate)
    assert len(gates) == 1
    assert "against itself, by rounding alone" in gates[0]
    outcome = convert_file(first, Settings(rank=9, max_error=1e-4))
    assert outcome.report.verification.relative_error > 1e-4
    assert outcome.report.missed == ()


class Chaos(nn.Module):
    """A recurrent net that multiplies every difference with every step."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0, 0.3)
        self.stem_bn.running_var.uniform_(0.5, 2)

    def forward(self, x):
        h = self.stem_bn(self.stem(x))
        for _ in range(24):
            h = torch.sin(40 * self.bn(self.conv(h)))
        return h


def test_a_chaotic_torch_network_is_fused(tmp_path):
    torch.manual_seed(0)
    torch.save(Chaos(), tmp_path / "net.pt")
    settings = Settings(trust_pickle=True, input_shape=("1,3,8,8",), threads=1)
    outcome = fuse_file(tmp_path / "net.pt", settings)
    check = outcome.report.verification
    assert check.relative_error > 0.03
    assert check.noise > 0.03
    assert outcome.written
    assert verdict_on(check).level == "unknown"
    assert "against itself" in verdict_on(check).reason
    assert torch.backends.mkldnn.enabled  # as before
