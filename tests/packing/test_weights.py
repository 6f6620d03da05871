"""Which tensor is the kernel of which layer, and what the layers behind it do to its channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import dacconv
from dacconv.errors import UnsupportedError
from dacconv.formats import model_files
from dacconv.packing.weights import find_weights
from tests import cli_nets

SCALE = np.linspace(0.5, 2.0, 8).astype(np.float32)


def weights_of(path: Path):
    files = model_files(path)
    return find_weights(dacconv.load(path), files, [file.path.read_bytes() for file in files])


def saved(path: Path, nodes, outputs: tuple[str, ...] = ("y",), **constants) -> Path:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, [1, 4, 6, 6])],
        [helper.make_tensor_value_info(name, 1, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture
def kernel() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((8, 4, 3, 3)).astype(np.float32)


def test_every_layer_is_found_in_order_with_the_scales_of_its_batch_norm(tmp_path) -> None:
    onnx.save(cli_nets.onnx_model(), tmp_path / "net.onnx")
    weights, notes = weights_of(tmp_path / "net.onnx")
    assert [weight.span.name for weight in weights] == [
        "conv1.weight", "conv2.weight", "conv3.weight", "point.weight", "fc.weight",
    ]  # fmt: skip
    assert not notes
    bn = cli_nets.trained().bn1
    scale = (bn.weight / (bn.running_var + bn.eps).sqrt()).abs().detach().numpy()
    expected = np.maximum(scale, 1e-3 * scale.max())
    assert np.allclose(weights[0].gains, expected, rtol=1e-5)
    assert (weights[3].gains == 1).all()


def test_scales_are_followed_through_transposes_and_loose_operators(tmp_path, kernel) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["c"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Sub", ["t", "mean"], ["s"]),
        helper.make_node("Mul", ["s", "scale"], ["y"]),
    ]
    path = saved(tmp_path / "net.onnx", nodes, w=kernel, mean=SCALE, scale=SCALE)
    assert np.allclose(weights_of(path)[0][0].gains, SCALE)


def test_a_conv_that_is_read_twice_has_no_gains(tmp_path, kernel) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["c", "scale"], ["y"]),
        helper.make_node("Relu", ["c"], ["z"]),
    ]
    scale = SCALE.reshape(8, 1, 1)
    path = saved(tmp_path / "net.onnx", nodes, ("y", "z"), w=kernel, scale=scale)
    assert (weights_of(path)[0][0].gains == 1).all()


def test_a_shared_weight_is_one_weight_and_its_copies_are_rounded_alike(tmp_path, kernel) -> None:
    square = np.random.default_rng(1).standard_normal((4, 4, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w"], ["b"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b", "copy"], ["y"], "third", pads=[1, 1, 1, 1]),
    ]
    weights, _ = weights_of(saved(tmp_path / "net.onnx", nodes, w=square, copy=square))
    (weight,) = weights
    assert weight.nodes == ("first", "second", "third")
    assert len(weight.places) == 2


def test_constants_that_no_layer_multiplies_with_are_left_alone(tmp_path, kernel) -> None:
    table = np.random.default_rng(1).standard_normal((1, 8, 6, 6)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "table"], ["y"]),
    ]
    weights, _ = weights_of(saved(tmp_path / "net.onnx", nodes, w=kernel, table=table))
    assert [weight.span.name for weight in weights] == ["w"]


def test_weights_that_are_not_finite_are_left_alone_with_the_reason(tmp_path, kernel) -> None:
    bad = kernel.copy()
    bad[0, 0, 0, 0] = np.nan
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "good", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["x", "bad"], ["d"], "bad", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "d"], ["y"]),
    ]
    weights, notes = weights_of(saved(tmp_path / "net.onnx", nodes, w=kernel, bad=bad))
    assert [weight.name for weight in weights] == ["good"]
    assert notes == ["bad: its weight has numbers that are NaN or infinite"]


def test_a_model_without_weights_is_refused(tmp_path) -> None:
    path = saved(tmp_path / "net.onnx", [helper.make_node("Relu", ["x"], ["y"])])
    with pytest.raises(UnsupportedError, match="no layer was found"):
        weights_of(path)
