"""What the graph says of each node: op, name, geometry, constants, and reasons to leave it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dacconv.errors import UnsupportedError, UsageError
from dacconv.graph.types import Geometry, Node
from tests.onnx_nets import (
    conv_model,
    difference,
    feeds,
    model,
    node,
    opened,
    run,
    save,
    split_all,
    weights,
)


def only(nodes: list[Any], constants: dict[str, np.ndarray], folder: Path, **options: Any) -> Node:
    """The last node of a model."""
    return opened(model(nodes, constants, **options), folder).graph().nodes[-1]


def geometry(each: Node) -> Geometry:
    assert each.geometry is not None
    return each.geometry


def test_a_conv(tmp_path: Path) -> None:
    proto = conv_model(conv_strides=[2, 1], conv_dilations=[1, 2], conv_pads=[1, 0, 2, 3])
    original = opened(proto, tmp_path)
    (conv,) = original.graph().nodes
    assert (conv.name, conv.op, conv.kind, conv.inputs, conv.output) == (
        "conv", "conv", "Conv", ("x",), "y",
    )  # fmt: skip
    assert conv.weight == "conv.weight"
    assert conv.skip is None
    assert conv.params == 6 * 4 * 9 + 6
    assert geometry(conv) == Geometry(
        in_channels=4, out_channels=6, kernel=(3, 3), stride=(2, 1), dilation=(1, 2), groups=1,
        bias=True, input_size=(9, 8), output_size=(5, 7),
    )  # fmt: skip
    value = original.conv("conv")
    assert value.padding == ((1, 2), (0, 3))
    assert (value.stride, value.dilation, value.groups) == ((2, 1), (1, 2), 1)


@pytest.mark.parametrize(
    ("mode", "padding"),
    [("SAME_UPPER", ((0, 1), (1, 1))), ("SAME_LOWER", ((1, 0), (1, 1))), ("VALID", ((0, 0),) * 2)],
)
def test_auto_pad_is_worked_out(
    mode: str, padding: tuple[tuple[int, int], ...], tmp_path: Path
) -> None:
    proto = conv_model(weights(6, 4, 2, 3), conv_auto_pad=mode)
    conv = opened(proto, tmp_path).conv("conv")
    assert conv.padding == padding
    assert conv.auto_pad == (None if mode == "VALID" else mode)


def test_auto_pad_of_an_unknown_size(tmp_path: Path) -> None:
    proto = conv_model(conv_auto_pad="SAME_UPPER", inputs={"x": (1, 4, "H", "W")})
    original = opened(proto, tmp_path)
    assert original.conv("conv").padding == ((0, 0), (0, 0))
    assert geometry(original.graph().nodes[0]).output_size is None


SKIPS: dict[str, tuple[dict[str, Any], str]] = {
    "kernel_shape": ({"conv_kernel_shape": [5, 5]}, "kernel_shape .* contradicts"),
    "negative pads": ({"conv_pads": [0, 0, -1, 0]}, "negative padding"),
    "pads": ({"conv_pads": [0, 0]}, "one entry per axis"),
    "channels": ({"inputs": {"x": (1, 5, 9, 8)}}, "does not fit an input of 5 channels"),
    "groups": ({"conv_group": 4, "inputs": {"x": (1, 16, 9, 8)}}, "group=4"),
    "auto_pad": ({"conv_auto_pad": "SOMEHOW"}, "not known"),
}


@pytest.mark.parametrize(("options", "words"), SKIPS.values(), ids=SKIPS)
def test_convs_that_make_no_sense_are_skipped(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (conv,) = opened(conv_model(**options), tmp_path).graph().nodes
    assert conv.skip is not None
    assert re.search(words, conv.skip)


def test_a_weight_that_comes_at_runtime(tmp_path: Path) -> None:
    inputs = {"x": (1, 4, 9, 8), "w": (6, 4, 3, 3)}
    conv = only([node("Conv", ["x", "w"], ["y"])], {}, tmp_path, inputs=inputs)
    assert conv.skip == "its weight is an input of the model (w), not a constant"
    assert geometry(conv).kernel == (3, 3)
    assert conv.inputs == ("x", "w")
    nodes = [node("Relu", ["w"], ["v"]), node("Conv", ["x", "v"], ["y"])]
    conv = only(nodes, {}, tmp_path, inputs=inputs)
    assert conv.skip == "its weight is computed at runtime: it is not a constant"


def test_a_bias_that_comes_at_runtime(tmp_path: Path) -> None:
    inputs = {"x": (1, 4, 9, 8), "b": (6,)}
    conv = only(
        [node("Conv", ["x", "w", "b"], ["y"])], {"w": weights(6, 4, 3, 3)}, tmp_path, inputs=inputs
    )
    assert conv.skip is not None
    assert "bias is computed at runtime" in conv.skip


def test_a_weight_that_others_read(tmp_path: Path) -> None:
    nodes = [
        node("Identity", ["w"], ["v"]),
        node("ReduceSum", ["v"], ["total"], name="norm", keepdims=0),
        node("Add", ["x", "total"], ["a"], name="add"),
        node("Conv", ["a", "w"], ["y"], name="conv"),
    ]
    conv = only(nodes, {"w": weights(6, 4, 3, 3)}, tmp_path)
    assert conv.skip == "its weight is also read by add (Add)"


def test_a_tied_autoencoder(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="down"),
        node("ConvTranspose", ["a", "w"], ["y"], name="up"),
    ]
    graph = opened(model(nodes, {"w": weights(6, 4, 3, 3)}), tmp_path).graph()
    assert [n.op for n in graph.nodes] == ["conv", "conv_transpose"]
    assert graph.nodes[0].skip == "its weight is also read by up (ConvTranspose)"


def test_a_sparse_weight(tmp_path: Path) -> None:
    proto = conv_model(bias=False)
    values = helper.make_tensor("conv.weight", 1, [2], [1.0, 2.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [2], [0, 9])
    del proto.graph.initializer[:]
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [6, 4, 3, 3]))
    (conv,) = opened(proto, tmp_path).graph().nodes
    assert conv.skip == "its weight is stored sparse"
    assert geometry(conv).kernel == (3, 3)


def test_a_weight_out_of_a_chain_that_cannot_be_followed(tmp_path: Path) -> None:
    nodes = [node("Erf", ["w0"], ["w"]), node("Conv", ["x", "w"], ["y"])]
    conv = only(nodes, {"w0": weights(6, 4, 3, 3)}, tmp_path)
    assert conv.skip is not None
    assert geometry(conv).output_size == (7, 6)


def test_names(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "features.0.weight"], ["a"]),
        node("Conv", ["a", "features.0.weight"], ["b"]),
        node("Conv", ["b", "123"], ["c"]),
        node("Relu", ["c"], ["d"], name="act"),
        node("Relu", ["d"], ["e"], name="act"),
        node("Conv", ["e", "block/kernel:0"], ["y"]),
    ]
    square = weights(4, 4, 1, 1)
    constants = {"features.0.weight": square, "123": square, "block/kernel:0": square}
    proto = model(nodes, constants)
    names = [n.name for n in opened(proto, tmp_path).graph().nodes]
    assert names == ["features.0", "features.0_1", "Conv_2", "act", "Relu_4", "block"]
    assert names == [n.name for n in opened(proto, tmp_path).graph().nodes]


def test_the_names_of_what_stays_survive_a_rewrite(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "1"], ["a"]), node("Conv", ["a", "2"], ["y"], group=2)]
    original = opened(model(nodes, {"1": weights(4, 4, 3, 3), "2": weights(4, 2, 3, 3)}), tmp_path)
    rewritten = split_all(original)
    assert [n.name for n in rewritten.graph().nodes] == ["Conv_0_dw", "Conv_0_pw", "Conv_1"]


X4 = {"x": (1, 4, 9, 8)}
AFFINES: dict[str, tuple[str, list[str], tuple[int, ...], Any]] = {
    "scale": ("Mul", ["x", "c"], (4, 1, 1), 1),
    "scale, full rank": ("Mul", ["x", "c"], (1, 4, 1, 1), 1),
    "scale, reversed": ("Mul", ["c", "x"], (4, 1, 1), 1),
    "scalar": ("Mul", ["x", "c"], (), 1),
    "scalar of one axis": ("Add", ["x", "c"], (1,), 1),
    "shift": ("Add", ["c", "x"], (4, 1, 1), 1),
    "minus": ("Sub", ["x", "c"], (4, 1, 1), 1),
    "minus, reversed": ("Sub", ["c", "x"], (4, 1, 1), 1),
    "over": ("Div", ["x", "c"], (4, 1, 1), 1),
    "last axis": ("Add", ["x", "c"], (8,), 3),
    "third axis": ("Add", ["x", "c"], (9, 1), 2),
    "over, reversed": ("Div", ["c", "x"], (4, 1, 1), None),
    "two axes": ("Mul", ["x", "c"], (9, 8), None),
    "wider": ("Mul", ["x", "c"], (1, 1, 4, 1, 1), None),
    "power": ("Pow", ["x", "c"], (4, 1, 1), None),
}


@pytest.mark.parametrize(("op", "names", "shape", "axis"), AFFINES.values(), ids=AFFINES)
def test_loose_arithmetic(
    op: str, names: list[str], shape: tuple[int, ...], axis: int | None, tmp_path: Path
) -> None:
    constant = np.abs(weights(*shape)) + np.float32(0.5)
    original = opened(model([node(op, names, ["y"], name="n")], {"c": constant}), tmp_path)
    (each,) = original.graph().nodes
    if axis is None:
        assert each.op == "other"
        with pytest.raises(UnsupportedError):
            original.affine("n")
        return
    assert (each.op, each.attrs["axis"], each.inputs) == ("affine", axis, ("x",))
    affine = original.affine("n")
    assert affine.scale.dtype == affine.shift.dtype == np.float64
    inputs = feeds(original)
    along = [1] * 4
    along[axis] = -1
    expected = inputs["x"] * affine.scale.reshape(along) + affine.shift.reshape(along)
    np.testing.assert_allclose(run(original, inputs)["y"], expected, rtol=1e-6, atol=1e-6)


def test_what_widens_its_input_is_not_affine(tmp_path: Path) -> None:
    inputs = {"x": (1, 1, 9, 8)}
    each = only([node("Mul", ["x", "c"], ["y"])], {"c": weights(4, 1, 1)}, tmp_path, inputs=inputs)
    assert each.op == "other"


def test_division_by_zero_is_not_affine(tmp_path: Path) -> None:
    each = only([node("Div", ["x", "c"], ["y"])], {"c": np.zeros(1, np.float32)}, tmp_path)
    assert each.op == "other"


def test_negation_is_affine(tmp_path: Path) -> None:
    original = opened(model([node("Neg", ["x"], ["y"], name="n")], {}), tmp_path)
    assert original.graph().nodes[0].op == "affine"
    assert (original.affine("n").scale, original.affine("n").shift) == (-1, 0)


def batch_norm(**attributes: Any) -> Any:
    outputs = attributes.pop("outputs", ["y"])
    return node("BatchNormalization", ["x", "g", "b", "m", "v"], outputs, name="bn", **attributes)


def bn_constants() -> dict[str, np.ndarray]:
    return {"g": weights(4), "b": weights(4, seed=1), "m": weights(4, seed=2),
            "v": weights(4, seed=3) ** 2}  # fmt: skip


def test_batch_norm_is_affine(tmp_path: Path) -> None:
    original = opened(model([batch_norm(epsilon=0.01)], bn_constants()), tmp_path)
    (each,) = original.graph().nodes
    assert (each.op, each.skip, each.params, each.inputs) == ("affine", None, 8, ("x",))
    affine, inputs = original.affine("bn"), feeds(original)
    column = (-1, 1, 1)
    expected = inputs["x"] * affine.scale.reshape(column) + affine.shift.reshape(column)
    np.testing.assert_allclose(run(original, inputs)["y"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("attributes", "opset", "words"),
    [
        ({"training_mode": 1, "outputs": ["y", "rm", "rv"]}, 15, "training mode"),
        ({"outputs": ["y", "a", "b2", "c", "d"]}, 9, "training mode"),
        ({"spatial": 0}, 7, "spatial=0"),
    ],
)
def test_batch_norm_that_is_not_fixed(
    attributes: dict[str, Any], opset: int, words: str, tmp_path: Path
) -> None:
    each = only([batch_norm(**attributes)], bn_constants(), tmp_path, opset=opset)
    assert each.op == "affine"
    assert each.skip is not None
    assert words in each.skip


def test_batch_norm_with_parameters_from_outside(tmp_path: Path) -> None:
    constants = bn_constants()
    del constants["g"]
    each = only([batch_norm()], constants, tmp_path, inputs=X4 | {"g": (4,)})
    assert each.skip == "BatchNormalization whose parameters are computed at runtime"


def test_sums_and_joins(tmp_path: Path) -> None:
    nodes = [
        node("Add", ["x", "z"], ["a"]),
        node("Sub", ["a", "z"], ["b"]),
        node("Sum", ["a", "b", "a"], ["c"]),
        node("Add", ["a", "a"], ["d"]),
        node("Concat", ["c", "d"], ["e"], axis=1),
        node("Concat", ["e", "e"], ["f"], axis=-1),
        node("Concat", ["x", "k"], ["g"], axis=1),
        node("Add", ["x", "p"], ["h"]),
        node("Sum", ["h"], ["y"]),
    ]
    constants = {"k": weights(1, 2, 9, 8)}
    inputs = X4 | {"z": (1, 4, 9, 8), "p": (1, 4, 1, 1)}
    graph = opened(model(nodes, constants, inputs=inputs), tmp_path).graph()
    assert [n.op for n in graph.nodes] == [
        "add", "add", "add", "add", "concat", "concat", "other", "other", "other",
    ]  # fmt: skip
    assert graph.nodes[1].attrs["coefficients"] == (1.0, -1.0)
    assert graph.nodes[2].inputs == ("a", "b", "a")
    assert graph.nodes[3].inputs == ("a", "a")
    assert [graph.nodes[i].attrs["axis"] for i in (4, 5)] == [1, 3]


def test_pools_pads_and_turns(tmp_path: Path) -> None:
    nodes = [
        node("AveragePool", ["x"], ["a"], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1],
             count_include_pad=1),
        node("AveragePool", ["x"], ["b"], kernel_shape=[2, 2], auto_pad="SAME_LOWER"),
        node("MaxPool", ["x"], ["c"], kernel_shape=[2, 2]),
        node("GlobalAveragePool", ["x"], ["d"]),
        node("Pad", ["x", "p"], ["e"]),
        node("Pad", ["x", "p2", "v", "axes"], ["f"]),
        node("Pad", ["x", "p", ""], ["g"], mode="reflect"),
        node("Transpose", ["x"], ["h"], perm=[0, 2, 3, 1]),
        node("Transpose", ["h"], ["i"]),
        node("Identity", ["i"], ["j"]),
        node("Cast", ["j"], ["k"], to=TensorProto.FLOAT),
        node("Cast", ["k"], ["l"], to=TensorProto.DOUBLE),
        node("Dropout", ["k"], ["y"]),
    ]  # fmt: skip
    constants = {
        "p": np.array([0, 0, 1, 2, 0, 0, 3, 4]), "p2": np.array([1, 2]),
        "v": np.array(0.5, np.float32), "axes": np.array([-1]),
    }  # fmt: skip
    graph = opened(model(nodes, constants, opset=18), tmp_path).graph()
    average, same, largest, everywhere = graph.nodes[:4]
    assert {n.op for n in graph.nodes[:4]} == {"pool"}
    assert average.attrs == {
        "kind": "average", "kernel": (3, 2), "stride": (2, 1), "padding": ((1, 1), (0, 1)),
        "dilation": (1, 1), "ceil_mode": False, "count_include_pad": True, "auto_pad": None,
    }  # fmt: skip
    assert (same.attrs["auto_pad"], same.attrs["padding"]) == ("SAME_LOWER", ((1, 0), (1, 0)))
    assert "average" not in (largest.attrs["kind"], everywhere.attrs["kind"])
    pads = graph.nodes[4:7]
    assert [n.op for n in pads] == ["pad"] * 3
    assert pads[0].attrs == {
        "pads": ((0, 0), (0, 0), (1, 3), (2, 4)), "mode": "constant", "value": 0.0,
    }  # fmt: skip
    assert pads[1].attrs["pads"] == ((0, 0), (0, 0), (0, 0), (1, 2))
    assert pads[1].attrs["value"] == 0.5
    assert pads[2].attrs["mode"] == "reflect"
    assert [n.op for n in graph.nodes[7:]] == [
        "transpose", "transpose", "identity", "identity", "other", "identity",
    ]  # fmt: skip
    assert graph.nodes[8].attrs["perm"] == (3, 2, 1, 0)


def test_old_pads(tmp_path: Path) -> None:
    pad = node("Pad", ["x"], ["y"], pads=[0, 0, 1, 2, 0, 0, 3, 4], value=2.0)
    each = only([pad], {}, tmp_path, opset=9)
    assert each.attrs == {
        "pads": ((0, 0), (0, 0), (1, 3), (2, 4)), "mode": "constant", "value": 2.0,
    }  # fmt: skip


LINEAR: dict[str, tuple[Any, dict[str, np.ndarray], tuple[int, ...], tuple[Any, ...]]] = {
    "Gemm": (node("Gemm", ["x", "w"], ["y"]), {"w": weights(8, 5)}, (3, 8), (8, 5, 3, ())),
    "Gemm, turned": (
        node("Gemm", ["x", "w"], ["y"], transB=1), {"w": weights(5, 8)}, (3, 8), (8, 5, 3, ())
    ),
    "MatMul": (node("MatMul", ["x", "w"], ["y"]), {"w": weights(8, 5)}, (3, 8), (8, 5, 3, ())),
    "tokens": (
        node("MatMul", ["x", "w"], ["y"]), {"w": weights(8, 5)}, (2, 7, 8), (8, 5, 2, (7,))
    ),
    "constant on the left": (
        node("MatMul", ["w", "x"], ["y"]), {"w": weights(5, 8)}, (2, 8, 7), (8, 5, 2, (7,))
    ),
    "input turned": (
        node("Gemm", ["x", "w"], ["y"], transA=1), {"w": weights(8, 5)}, (8, 3), (8, 5, 3, ())
    ),
}  # fmt: skip


@pytest.mark.parametrize(("proto", "constants", "shape", "sizes"), LINEAR.values(), ids=LINEAR)
def test_linear_layers(
    proto: Any,
    constants: dict[str, np.ndarray],
    shape: tuple[int, ...],
    sizes: tuple[Any, ...],
    tmp_path: Path,
) -> None:
    each = only([proto], constants, tmp_path, inputs={"x": shape})
    found = geometry(each)
    assert each.op == "linear"
    assert (found.in_channels, found.out_channels, found.batch, found.output_size) == sizes
    assert (each.weight, each.params) == ("w", 40)


def test_a_product_of_two_values_is_no_layer(tmp_path: Path) -> None:
    inputs = {"x": (2, 8), "z": (8, 3)}
    assert only([node("MatMul", ["x", "z"], ["y"])], {}, tmp_path, inputs=inputs).op == "other"


def body(op: str, result: str, constant: np.ndarray | None = None) -> onnx.GraphProto:
    tensors = [] if constant is None else [onnx.numpy_helper.from_array(constant, "inner")]
    made = node(op, ["x", "inner" if constant is not None else "w"], [result], name="body")
    return helper.make_graph(
        [made], "body", [], [helper.make_tensor_value_info(result, 1, None)], tensors
    )


def test_convs_inside_an_if(tmp_path: Path) -> None:
    branch = node(
        "If", ["flag"], ["a"], name="if",
        then_branch=body("Conv", "t", weights(4, 4, 3, 3)), else_branch=body("Conv", "e"),
    )  # fmt: skip
    nodes = [branch, node("Conv", ["x", "w"], ["y"], name="conv")]
    constants = {"flag": np.array(True), "w": weights(4, 4, 3, 3)}
    graph = opened(model(nodes, constants), tmp_path).graph()
    assert [(n.name, n.op) for n in graph.nodes] == [
        ("if/else_branch/body", "conv"), ("if/then_branch/body", "conv"), ("if", "other"),
        ("conv", "conv"),
    ]  # fmt: skip
    assert graph.nodes[0].skip == "inside the body of if (If)"
    assert geometry(graph.nodes[1]).kernel == (3, 3)
    assert graph.node("if").inputs == ("x",)
    assert graph.node("conv").skip == "its weight is also read by if (If)"


def test_parameters_are_counted_once(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w", "b"], ["a"]),
        node("Conv", ["a", "w", "b"], ["c"]),
        node("Reshape", ["c", "shape"], ["y"]),
    ]
    constants = {"w": weights(4, 4, 1, 1), "b": weights(4), "shape": np.array([1, -1])}
    graph = opened(model(nodes, constants), tmp_path).graph()
    assert [n.params for n in graph.nodes] == [20, 0, 0]


def test_inputs_and_shapes(tmp_path: Path) -> None:
    proto = conv_model(inputs={"x": ("N", 4, "H", "W")})
    original = opened(proto, tmp_path)
    assert original.inputs()[0].shape == (1, 4, None, None)
    assert geometry(original.graph().nodes[0]).output_size is None
    for name in ("x", ""):
        sized = opened(proto, tmp_path, {name: (2, 4, 11, 12)})
        assert sized.inputs()[0].shape == (2, 4, 11, 12)
        found = geometry(sized.graph().nodes[0])
        assert (found.input_size, found.output_size, found.batch) == ((11, 12), (9, 10), 2)
        assert sized.graph().nodes[0].shape == (2, 6, 9, 10)


def test_a_free_batch_is_one(tmp_path: Path) -> None:
    for batch in ("N", -1, 0):
        original = opened(conv_model(inputs={"x": (batch, 4, 9, 8)}), tmp_path)
        assert original.inputs()[0].shape == (1, 4, 9, 8)
        assert original.graph().nodes[0].shape == (1, 6, 7, 6)


def test_a_symbol_is_bound_everywhere(tmp_path: Path) -> None:
    nodes = [node("Add", ["x", "z"], ["y"])]
    inputs = {"x": ("N", 4, "H", 8), "z": ("N", 4, "H", 8), "length": ("T",)}
    proto = model(nodes, {}, inputs=inputs)
    assert [s.shape for s in opened(proto, tmp_path).inputs()] == [
        (1, 4, None, 8), (1, 4, None, 8), (None,),
    ]  # fmt: skip
    sized = opened(proto, tmp_path, {"x": (3, 4, 5, 8)})
    assert [s.shape for s in sized.inputs()] == [(3, 4, 5, 8), (3, 4, 5, 8), (None,)]


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"z": (1, 4, 9, 8)}, r"no input 'z'\n.*x \(N, 4, 9, 8\)"),
        ({"x": (4, 9, 8)}, r"cannot have the shape \[4, 9, 8\]"),
        ({"": (1, 3, 9, 8)}, r"the model fixes it as x \(N, 4, 9, 8\)"),
        ({"x": (0, 4, 9, 8)}, "1 or more"),
    ],
)
def test_shapes_that_do_not_fit(
    shapes: dict[str, tuple[int, ...]], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        opened(conv_model(inputs={"x": ("N", 4, 9, 8)}), tmp_path, shapes)
    assert re.search(words, str(caught.value))


def test_initializers_among_the_inputs_are_constants(tmp_path: Path) -> None:
    original = opened(conv_model(ir=4, opset=9, constants_as_inputs=True), tmp_path)
    assert [spec.name for spec in original.inputs()] == ["x"]
    assert original.graph().nodes[0].skip is None


def test_sizes_behind_computed_shapes(tmp_path: Path) -> None:
    """Resize to a size that is computed from a Shape, as torch exports interpolate."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Slice", ["s", "two", "four", "zero"], ["hw"]),
        node("Cast", ["hw"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["f", "factor"], ["g"]),
        node("Floor", ["g"], ["h"]),
        node("Cast", ["h"], ["i"], to=TensorProto.INT64),
        node("Slice", ["s", "zero", "two", "zero"], ["nc"]),
        node("Concat", ["nc", "i"], ["size"], axis=0),
        node("Resize", ["x", "", "", "size"], ["r"]),
        node("Shape", ["r"], ["rs"]),
        node("Gather", ["rs", "zero"], ["n"]),
        node("Concat", ["n", "minus"], ["to"], axis=0),
        node("Reshape", ["r", "to"], ["flat"]),
        node("Conv", ["r", "w"], ["y"], name="conv"),
    ]
    constants = {
        "zero": np.array([0]), "two": np.array([2]), "four": np.array([4]),
        "factor": np.array([1.5, 2.5], np.float32), "w": weights(3, 4, 3, 3),
        "minus": np.array([-1]),
    }  # fmt: skip
    graph = opened(model(nodes, constants), tmp_path).graph()
    assert geometry(graph.node("conv")).input_size == (13, 20)
    assert next(n.shape for n in graph.nodes if n.output == "flat") == (1, 4 * 13 * 20)


def test_what_the_file_says_fills_the_gaps(tmp_path: Path) -> None:
    """A custom operator, whose output shape only the file knows."""
    nodes = [
        node("Mystery", ["x"], ["a"], domain="custom", name="mystery"),
        node("Conv", ["a", "w"], ["y"], name="conv"),
    ]
    proto = model(nodes, {"w": weights(3, 4, 3, 3)}, imports=[("custom", 1)])
    assert geometry(opened(proto, tmp_path).graph().node("conv")).output_size is None
    proto.graph.value_info.append(helper.make_tensor_value_info("a", 1, [1, 4, 20, 10]))
    graph = opened(proto, tmp_path).graph()
    assert geometry(graph.node("conv")).output_size == (18, 8)
    assert graph.node("mystery").kind == "custom::Mystery"


def test_an_operator_of_another_domain_is_not_ours(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["y"], domain="custom", name="conv")]
    proto = model(nodes, {"w": weights(3, 4, 3, 3)}, imports=[("custom", 1)])
    (conv,) = opened(proto, tmp_path).graph().nodes
    assert conv.op == "other"


def test_runtime_operators_are_told(tmp_path: Path) -> None:
    nodes = [node("FusedConv", ["x", "w"], ["y"], domain="com.microsoft", name="conv")]
    proto = model(nodes, {"w": weights(3, 4, 3, 3)}, imports=[("com.microsoft", 1)])
    (conv,) = opened(proto, tmp_path).graph().nodes
    assert conv.op == "conv"
    assert conv.skip is not None
    assert "ONNX Runtime's own" in conv.skip


def test_wrong_nodes_are_refused(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["a"], name="conv"), node("Relu", ["a"], ["y"], name="relu")]
    original = opened(model(nodes, {"w": weights(3, 4, 3, 3)}), tmp_path)
    for call in (original.conv, original.affine):
        with pytest.raises(UnsupportedError, match="relu"):
            call("relu")
        with pytest.raises(UnsupportedError, match="nobody"):
            call("nobody")


def test_the_default_domain_by_its_long_name(tmp_path: Path) -> None:
    proto = conv_model()
    proto.graph.node[0].domain = "ai.onnx"
    proto.opset_import[0].domain = "ai.onnx"
    (conv,) = opened(proto, tmp_path).graph().nodes
    assert (conv.op, conv.skip) == ("conv", None)
    save(proto, tmp_path)


def test_a_loop_that_reads_the_graph_around_it(tmp_path: Path) -> None:
    inner = [
        node("Identity", ["cond_in"], ["cond_out"]),
        node("Conv", ["state", "w"], ["next"], pads=[1] * 4),
    ]
    info, state = helper.make_tensor_value_info, (1, 4, 9, 8)
    looped = helper.make_graph(
        inner,
        "loop",
        [
            info("i", TensorProto.INT64, []),
            info("cond_in", TensorProto.BOOL, []),
            info("state", 1, state),
        ],
        [info("cond_out", TensorProto.BOOL, []), info("next", 1, state)],
    )
    nodes = [
        node("Conv", ["x", "v"], ["a"], name="before", pads=[1] * 4),
        node("Loop", ["n", "", "a"], ["y"], name="loop", body=looped),
    ]
    constants = {"v": weights(4, 4, 3, 3), "w": weights(4, 4, 3, 3), "n": np.array(3)}
    original = opened(model(nodes, constants), tmp_path)
    graph = original.graph()
    assert [(n.name, n.skip) for n in graph.nodes if n.op == "conv"] == [
        ("before", None),
        ("loop/body/Conv_1", "inside the body of loop (Loop)"),
    ]
    assert graph.node("loop").inputs == ("a",)
    inputs = feeds(original)
    assert difference(run(original, inputs), run(split_all(original), inputs)) < 1e-5
