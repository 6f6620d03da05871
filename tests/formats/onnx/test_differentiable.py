"""ONNX by torch, for gradients: the BatchNorms see what the original module's see."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import dacconv
from dacconv.formats.onnx.differentiable import batch_norm_inputs
from dacconv.formats.torch.distil import Stored, distil
from tests.conftest import ROOT

ASSETS = ROOT / "tests" / "assets"


def quiet(task, done, total):
    pass


def test_the_values_are_those_of_the_module(monkeypatch):
    monkeypatch.syspath_prepend(ASSETS)
    from fashion_net import FashionNet

    net = FashionNet().eval()
    net.load_state_dict(torch.load(ASSETS / "fashion.pth", weights_only=True))
    expected = []
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda _, given: expected.append(given[0]))
    x = torch.randn(3, 1, 28, 28)
    net(x)
    model = dacconv.load(ASSETS / "fashion.onnx")
    seen, stored = batch_norm_inputs(model.document, model.constants, "image", "cpu")
    for mine, theirs in zip(seen(x), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)
    for mine, norm in zip(stored, norms, strict=True):
        torch.testing.assert_close(mine.mean, norm.running_mean)
        torch.testing.assert_close(mine.variance, norm.running_var)
    sys.modules.pop("fashion_net", None)


def test_an_unknown_operator_means_no_distillation(tmp_path):
    ones = np.ones(2, np.float32)
    names = ("scale", "shift", "mean", "var")
    nodes = [
        helper.make_node("Erf", ["x"], ["y"]),
        helper.make_node("BatchNormalization", ["y", *names], ["z"]),
    ]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, 4, 4]) for n in "xz"]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:],
                              [numpy_helper.from_array(ones, name) for name in names])  # fmt: skip
    path = tmp_path / "erf.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, path)
    model = dacconv.load(path)
    assert batch_norm_inputs(model.document, model.constants, "x", "cpu") is None


def test_the_descent_brings_statistics_nearer_within_bounds():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 6, 3)
    stored = [Stored(torch.randn(6), torch.rand(6) + 0.5)]

    def seen(x):
        return [conv(x)]

    def mismatch(images):
        value = conv(torch.from_numpy(images))
        return float(((value.mean((0, 2, 3)) - stored[0].mean) ** 2).mean())

    images = np.random.default_rng(0).random((8, 2, 9, 9)).astype(np.float32)
    low, high = np.full(2, -2.0), np.full(2, 2.0)
    for parameter in conv.parameters():
        parameter.requires_grad_(False)
    made = distil(seen, stored, images, low=low, high=high, device="cpu", progress=quiet)
    assert made.min() >= -2
    assert made.max() <= 2
    assert mismatch(made) < 0.5 * mismatch(images)


def test_a_device_that_is_not_there_is_told():
    from dacconv.errors import UsageError
    from dacconv.formats.torch.gradients import place_for

    with pytest.raises(UsageError, match="cannot be used"):
        place_for("nonsense")
