"""Running through a model with gradients, in every format, and factors tuned together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dacconv
from dacconv.decompositions import METHODS
from dacconv.decompositions.formula import as_kernel
from dacconv.errors import UnsupportedError
from dacconv.formats.torch.descent import Factored, measure, tune
from tests.conftest import ROOT
from tests.formats.test_walk import Branched, opened

ASSETS = ROOT / "tests" / "assets"
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore")


def a_model(kind, folder):
    torch.manual_seed(0)
    if kind == "onnx":
        return dacconv.load(ASSETS / "fashion.onnx")
    return opened(Branched().eval(), kind, folder)


def batches(model, count=2):
    spec = model.inputs()[0]
    rng = np.random.default_rng(0)
    size = [8, *spec.shape[1:]]
    return [{spec.name: rng.standard_normal(size).astype(np.float32)} for _ in range(count)]


EVERY_METHOD = pytest.mark.parametrize("method", [name for name in METHODS if name != "lowrank"])
"""``lowrank`` splits none of the convs of the network."""


def factored(model, rank, name="dac"):
    """The convs that are called once, split by a method; some have odd geometries."""
    method, result = METHODS[name], []
    for layer in dacconv.survey(model, fuse=False):
        if layer.skip is None and len(layer.sites) == 1 and method.refuses(layer) is None:
            conv = model.conv(layer.sites[0])
            kernel = as_kernel(conv.weight, 1)
            ranks = method.clip((rank,) * len(method.formula.ranks), layer.geometry)
            factors = method.decompose(kernel).factors(kernel, ranks)
            bias = np.zeros(conv.out_channels) if conv.bias is None else conv.bias
            result.append(Factored(layer.sites[0], conv, method.formula.text, factors, bias))
    return result


@pytest.mark.parametrize("kind", ["module", "pt2", "onnx"])
@EVERY_METHOD
def test_a_run_with_gradients_is_a_run(kind, method, tmp_path):
    model = a_model(kind, tmp_path)
    layers, feeds = factored(model, 10**4, method), batches(model)
    with model.differentiable([layer.node for layer in layers], device="cpu") as run:
        done = measure(run, layers, feeds, CPU)
    assert layers
    for expected, actual, given in zip(done.expected, done.actual, feeds, strict=True):
        for name, value in model.runner()(given).items():
            np.testing.assert_allclose(expected[name], value, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(actual[name], value, rtol=1e-3, atol=1e-4)
    assert max(done.errors.values()) < 1e-9


@pytest.mark.parametrize("kind", ["module", "pt2", "onnx"])
@EVERY_METHOD
def test_descent_lowers_the_errors_and_leaves_the_model_alone(kind, method, tmp_path):
    model = a_model(kind, tmp_path)
    layers, feeds = factored(model, 1, method), batches(model)
    before = model.runner()(feeds[0])
    with model.differentiable([layer.node for layer in layers], device="cpu") as run:
        start = measure(run, layers, feeds, CPU)
        made = tune(run, layers, start.powers, [feeds] * 25, 25, CPU, lambda done: None)
        end = measure(run, made, feeds, CPU)
    share = 0.98 if method in ("channel", "tucker", "cp") else 0.95  # these begin near a minimum
    assert sum(end.errors.values()) < share * sum(start.errors.values())
    for name, value in model.runner()(feeds[0]).items():
        np.testing.assert_array_equal(value, before[name])


def test_errors_that_are_not_finite_end_it(tmp_path):
    model = a_model("module", tmp_path)
    layers, feeds = factored(model, 1), batches(model)
    feeds[0]["image"][:] = np.inf
    with model.differentiable([layer.node for layer in layers], device="cpu") as run:
        powers = {layer.node: 1.0 for layer in layers}
        assert tune(run, layers, powers, [feeds], 1, CPU, lambda done: None) is None


def test_an_operator_without_gradients_is_told(tmp_path):
    from onnx import TensorProto, helper, save

    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, 4, 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Erf", ["x"], ["y"])], "g", value[:1], value[1:])
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "erf.onnx")
    model = dacconv.load(tmp_path / "erf.onnx")
    with pytest.raises(UnsupportedError, match="Erf"), model.differentiable([], device="cpu"):
        pass
