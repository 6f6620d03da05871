"""What an ONNX graph does with sizes that its file fixes, and rewrites around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dacconv
from dacconv.fusions import fuse

SHAPE = [1, 4, 6, 6]


def model_of(tmp_path: Path, nodes, tensors, shape=SHAPE, kind=TensorProto.FLOAT, outputs=("y",)):
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    graph = helper.make_graph(
        [helper.make_node(op, i, o, name=o[0], **a) for op, i, o, a in nodes],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    return dacconv.load(path)


def agree(model, made, shape=SHAPE, dtype=np.float32, tolerance=1e-5) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    pair = [m.session(optimise=False, threads=1).run(None, {"x": x}) for m in (model, made)]
    for expected, result in zip(*pair, strict=True):
        assert expected.shape == result.shape
        assert np.abs(result - expected).max() <= tolerance * np.abs(expected).max()


def constants(seed: int = 0, dtype=np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.normal(size=(4, 4, 3, 3)).astype(dtype),
        "scale": rng.normal(size=4).astype(dtype) + 2,
        "bias": rng.normal(size=4).astype(dtype),
        "mean": rng.normal(size=4).astype(dtype),
        "var": rng.uniform(0.1, 3, 4).astype(dtype),
    }


BN = ["scale", "bias", "mean", "var"]
SAME = {"pads": [1, 1, 1, 1]}


def kinds(model) -> list[str]:
    return [node.kind for node in model.graph().nodes]


def test_a_size_that_the_file_fixes_is_no_reader(tmp_path):
    """The conv's value goes, and the size that was read of it stays as a constant."""
    nodes = [
        ("Conv", ["x", "w"], ["c"], SAME),
        ("Shape", ["c"], ["s"], {}),
        ("BatchNormalization", ["c", *BN], ["b"], {}),
        ("Relu", ["b"], ["r"], {}),
        ("Reshape", ["r", "s"], ["y"], {}),
    ]
    model = model_of(tmp_path, nodes, constants())
    made, fused, refusals = fuse(model)
    assert len(fused) == 1
    assert not refusals
    assert kinds(made) == ["Conv", "Relu", "Reshape"]
    agree(model, made)


def test_a_size_of_a_slice(tmp_path):
    nodes = [
        ("Conv", ["x", "w"], ["c"], SAME),
        ("Slice", ["c", "zero", "two", "three"], ["part"], {}),
        ("Shape", ["part"], ["s"], {}),
        ("BatchNormalization", ["c", *BN], ["b"], {}),
        ("Slice", ["b", "zero", "two", "three"], ["p"], {}),
        ("Reshape", ["p", "s"], ["y"], {}),
    ]
    numbers = {"zero": [0], "two": [2], "three": [3]}
    more = {name: np.asarray(value, np.int64) for name, value in numbers.items()}
    model = model_of(tmp_path, nodes, constants() | more)
    made, fused, _ = fuse(model)
    assert len(fused) == 1
    assert kinds(made) == ["Conv", "Slice", "Reshape"]
    agree(model, made)


def test_a_size_that_is_not_fixed_is_a_reader(tmp_path):
    nodes = [
        ("Conv", ["x", "w"], ["c"], SAME),
        ("Shape", ["c"], ["s"], {}),
        ("BatchNormalization", ["c", *BN], ["b"], {}),
        ("Reshape", ["b", "s"], ["y"], {}),
    ]
    model = model_of(tmp_path, nodes, constants(), shape=["n", 4, 6, 6])
    _, fused, refusals = fuse(model)
    assert not fused
    assert "also read by s" in refusals[0].reason
    # what the user says of the input is not what the file fixes
    given = dacconv.load(tmp_path / "model.onnx", input_shapes={"": (1, 4, 6, 6)})
    assert not fuse(given)[1]


def test_sizes_before_a_padding_that_moves_are_kept(tmp_path):
    """Pad in NHWC, Transpose, Conv: the size of what lies between is another afterwards."""
    nodes = [
        ("Pad", ["x", "amounts"], ["p"], {}),
        ("Shape", ["p"], ["padded"], {}),
        ("Transpose", ["p"], ["t"], {"perm": [0, 3, 1, 2]}),
        ("Shape", ["t"], ["turned"], {}),
        ("Conv", ["t", "w"], ["c"], {}),
        ("ConstantOfShape", ["padded"], ["a"], {}),
        ("ConstantOfShape", ["turned"], ["b"], {}),
        ("ReduceSum", ["a"], ["u"], {"keepdims": 0}),
        ("ReduceSum", ["b"], ["v"], {"keepdims": 0}),
        ("Add", ["c", "u"], ["d"], {}),
        ("Add", ["d", "v"], ["e"], {}),
        ("Relu", ["c"], ["y"], {}),
    ]
    amounts = {"amounts": np.asarray([0, 1, 1, 0, 0, 1, 1, 0], np.int64)}
    ones = numpy_helper.from_array(np.ones(1, np.float32))
    nodes = [(o, i, n, {"value": ones} if o == "ConstantOfShape" else a) for o, i, n, a in nodes]
    model = model_of(tmp_path, nodes, constants() | amounts, shape=[1, 6, 6, 4], outputs=("y", "e"))
    made, fused, _ = fuse(model)
    assert any("Pad" in each.what for each in fused)
    agree(model, made, [1, 6, 6, 4])


def test_a_subgraph_that_reads_the_value(tmp_path):
    then = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["o"])], "then", [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        ("Conv", ["x", "w"], ["c"], SAME),
        ("BatchNormalization", ["c", *BN], ["b"], {}),
        ("If", ["flag"], ["i"], {"then_branch": then, "else_branch": then}),
        ("Add", ["b", "i"], ["y"], {}),
    ]
    model = model_of(tmp_path, nodes, constants() | {"flag": np.asarray(True)})
    made, fused, refusals = fuse(model)
    assert made is model
    assert not fused
    assert "also read by i (If)" in {r.node: r.reason for r in refusals}["b"]


def test_a_fold_that_would_overflow_in_float16_is_refused(tmp_path):
    tensors = constants(dtype=np.float16)
    tensors["var"] = np.zeros(4, np.float16)
    tensors["scale"] = np.full(4, 6e4, np.float16)
    nodes = [
        ("Conv", ["x", "w"], ["c"], SAME),
        ("BatchNormalization", ["c", *BN], ["y"], {"epsilon": 1e-5}),
    ]
    model = model_of(tmp_path, nodes, tensors, kind=TensorProto.FLOAT16)
    made, fused, refusals = fuse(model)
    assert made is model
    assert not fused
    assert refusals[0].reason == "the merged weights overflow in float16"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_weights_are_cast_once_to_their_own_type(tmp_path, dtype):
    tensors = constants(dtype=dtype)
    nodes = [
        ("Conv", ["x", "w"], ["c"], SAME),
        ("BatchNormalization", ["c", *BN], ["y"], {}),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = model_of(tmp_path, nodes, tensors, kind=kind)
    made, fused, _ = fuse(model)
    assert len(fused) == 1
    assert made.conv("c").weight.dtype == dtype
    wide = {name: value.astype(np.float64) for name, value in tensors.items()}
    factor = wide["scale"] / np.sqrt(wide["var"] + 1e-5)
    exact = wide["w"] * factor.reshape(-1, 1, 1, 1)
    assert np.array_equal(made.conv("c").weight, exact.astype(dtype))
