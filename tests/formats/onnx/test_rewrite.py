"""Rewritten graphs against the originals in ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dacconv.errors import UnsupportedError
from dacconv.formats.onnx.document import pieces
from dacconv.formats.onnx.model import OnnxModel
from dacconv.graph.types import Affine, Conv, Rewrite
from tests.onnx_nets import (
    conv_model,
    difference,
    feeds,
    model,
    node,
    opened,
    run,
    split,
    split_all,
    weights,
)

ONE = (1, 1)
NONE = ((0, 0), (0, 0))


def proto_of(opened_model: OnnxModel) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(b"".join(pieces(opened_model.document)))


def check(original: OnnxModel, rewritten: OnnxModel, tolerance: float = 1e-5) -> onnx.ModelProto:
    inputs = feeds(original)
    assert difference(run(original, inputs), run(rewritten, inputs)) < tolerance
    proto = proto_of(rewritten)
    onnx.checker.check_model(proto, full_check=True)
    return proto


GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "padded": {"conv_pads": [1, 1, 1, 1]},
    "lopsided": {"conv_pads": [0, 1, 2, 3]},
    "strided": {"conv_strides": [2, 3], "conv_pads": [1, 0, 1, 0]},
    "dilated": {"conv_dilations": [2, 1], "conv_pads": [2, 1, 2, 1]},
    "same upper": {"conv_auto_pad": "SAME_UPPER"},
    "same lower": {"conv_auto_pad": "SAME_LOWER"},
    "same upper, strided": {"conv_auto_pad": "SAME_UPPER", "conv_strides": [2, 2]},
    "same lower, strided": {"conv_auto_pad": "SAME_LOWER", "conv_strides": [2, 3]},
    "same lower, even": {"conv_auto_pad": "SAME_LOWER", "weight": weights(5, 3, 2, 4)},
    "valid": {"conv_auto_pad": "VALID"},
    "notset": {"conv_auto_pad": "NOTSET", "conv_pads": [1, 1, 1, 1]},
    "rectangular": {"weight": weights(5, 3, 1, 7), "conv_pads": [0, 3, 0, 3]},
    "one channel in": {"weight": weights(5, 1, 3, 3)},
    "one channel out": {"weight": weights(1, 4, 3, 3)},
    "3-D": {"weight": weights(5, 3, 2, 3, 2)},
    "1-D": {"weight": weights(5, 3, 4)},
    "kernel_shape stated": {"conv_kernel_shape": [3, 3], "conv_group": 1},
}


@pytest.mark.parametrize("options", GEOMETRIES.values(), ids=GEOMETRIES)
def test_every_geometry_survives_an_exact_split(options: dict[str, Any], tmp_path: Path) -> None:
    original = opened(conv_model(**options), tmp_path)
    proto = check(original, split_all(original))
    assert [n.name for n in proto.graph.node] == ["conv_dw", "conv_pw"]
    stems = [n.rpartition(".")[0] for n in (i.name for i in proto.graph.initializer)]
    assert set(stems) == {"conv_dw", "conv_pw"}


@pytest.mark.parametrize("opset", range(7, 24))
def test_every_opset_survives(opset: int, tmp_path: Path) -> None:
    ir = 3 if opset < 9 else 4 if opset < 12 else 10
    proto = conv_model(opset=opset, ir=ir, constants_as_inputs=ir < 4)
    original = opened(proto, tmp_path)
    after = check(original, split_all(original))
    assert (after.ir_version, after.opset_import[0].version) == (ir, opset)
    names = {value.name for value in after.graph.input}
    assert names == ({"x", *(i.name for i in after.graph.initializer)} if ir < 4 else {"x"})


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float16, 4e-3), (np.float64, 1e-12), (ml_dtypes.bfloat16, 4e-2)]
)
def test_other_floats_stay_what_they_are(dtype: Any, tolerance: float, tmp_path: Path) -> None:
    original = opened(conv_model(weights(6, 4, 3, 3, dtype=dtype), opset=22, ir=10), tmp_path)
    rewritten = split_all(original)
    assert original.conv("conv").weight.dtype == np.dtype(dtype)
    proto = proto_of(rewritten)
    assert {i.data_type for i in proto.graph.initializer} == {
        original.document.tensors["conv.weight"].data_type
    }
    onnx.checker.check_model(proto, full_check=True)
    x = np.random.default_rng(0).standard_normal((1, 4, 9, 8)).astype(dtype)
    expected = ReferenceEvaluator(proto_of(original)).run(None, {"x": x})
    actual = ReferenceEvaluator(proto).run(None, {"x": x})
    assert difference({"y": expected[0]}, {"y": actual[0]}) < tolerance


def test_weights_that_overflow_half_precision_are_refused(tmp_path: Path) -> None:
    original = opened(conv_model(weights(6, 4, 3, 3, dtype=np.float16), bias=False), tmp_path)
    big = Conv(np.full((6, 4, 3, 3), 1e6), None, ONE, NONE, ONE)
    with pytest.raises(UnsupportedError, match=r"overflow in float16"):
        original.rewrite([Rewrite("conv", "x", ((big,),))])


STORED: dict[str, Callable[[np.ndarray], tuple[list[Any], dict[str, np.ndarray]]]] = {
    "Constant": lambda w: ([node("Constant", [], ["w"], value=numpy_helper.from_array(w))], {}),
    "Identity": lambda w: ([node("Identity", ["w0"], ["w"])], {"w0": w}),
    "two Identities": lambda w: (
        [node("Identity", ["w0"], ["w1"]), node("Identity", ["w1"], ["w"])],
        {"w0": w},
    ),
    "Transpose": lambda w: (
        [node("Transpose", ["w0"], ["w"], perm=[3, 2, 0, 1])],
        {"w0": np.ascontiguousarray(w.transpose(2, 3, 1, 0))},
    ),
    "Reshape": lambda w: (
        [node("Reshape", ["w0", "s"], ["w"])],
        {"w0": w.reshape(-1), "s": np.array(w.shape)},
    ),
    "Cast": lambda w: ([node("Cast", ["w0"], ["w"], to=1)], {"w0": w.astype(np.float64)}),
    "Cast from half": lambda w: (
        [node("Cast", ["w0"], ["w"], to=1)],
        {"w0": w.astype(np.float16)},
    ),
    "Unsqueeze": lambda w: (
        [node("Squeeze", ["w0", "a"], ["w1"]), node("Unsqueeze", ["w1", "b"], ["w"])],
        {"w0": w[None, ..., :1], "a": np.array([0, 4]), "b": np.array([3])},
    ),
    "scaled": lambda w: (
        [node("Mul", ["w0", "s"], ["w"])],
        {"w0": w, "s": np.full((1, 1, 1, 1), 0.5, np.float32)},
    ),
    "weight norm": lambda w: (
        [
            node("ReduceL2", ["v"], ["n"], axes=[1, 2, 3], keepdims=1),
            node("Div", ["v", "n"], ["u"]),
            node("Mul", ["u", "g"], ["w"]),
        ],
        {"v": w, "g": np.linspace(1, 2, len(w)).astype(np.float32).reshape(-1, 1, 1, 1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_weights_are_found_where_exporters_put_them(
    stored: Callable[[np.ndarray], tuple[list[Any], dict[str, np.ndarray]]], tmp_path: Path
) -> None:
    nodes, constants = stored(weights(6, 4, 3, 3))
    nodes.append(node("Conv", ["x", "w"], ["y"], name="conv"))
    original = opened(model(nodes, constants), tmp_path)
    proto = check(original, split_all(original))
    assert [n.op_type for n in proto.graph.node] == ["Conv", "Conv"]
    assert [i.name for i in proto.graph.initializer] == ["conv_dw.weight", "conv_pw.weight"]


def test_a_shared_weight_stays_shared(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="one", pads=[1] * 4),
        node("Conv", ["a", "w"], ["y"], name="two", dilations=[2, 2]),
    ]
    original = opened(model(nodes, {"w": weights(4, 4, 3, 3)}), tmp_path)
    assert [n.weight for n in original.graph().nodes] == ["w", "w"]
    proto = check(original, split_all(original))
    assert len(proto.graph.initializer) == 2
    assert [n.input[1] for n in proto.graph.node[:2]] == [n.input[1] for n in proto.graph.node[2:]]


def test_adjacent_rewrites_in_one_batch(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "v"], ["a"], name="one"),
        node("Conv", ["a", "w"], ["y"], name="two"),
    ]
    constants = {"v": weights(5, 4, 3, 3), "w": weights(3, 5, 3, 3)}
    original = opened(model(nodes, constants), tmp_path)
    proto = check(original, split_all(original))
    assert [n.name for n in proto.graph.node] == ["one_dw", "one_pw", "two_dw", "two_pw"]
    assert proto.graph.node[1].output[0] == "a"


def test_a_sum_of_chains(tmp_path: Path) -> None:
    original = opened(conv_model(conv_pads=[1] * 4, conv_strides=[2, 2]), tmp_path)
    conv = original.conv("conv")
    first, second = split(conv)
    rank = first.weight.shape[0] // 4
    branches = []
    for r in range(rank):
        bias = conv.bias if r == rank - 1 else None
        branches.append((
            Conv(first.weight[r::rank], None, first.stride, first.padding, ONE, 4),
            Conv(second.weight[:, r::rank], bias, ONE, NONE, ONE),
        ))  # fmt: skip
    rewritten = original.rewrite([Rewrite("conv", "x", tuple(branches))])
    proto = check(original, rewritten)
    kinds = [n.op_type for n in proto.graph.node]
    assert kinds == ["Conv"] * 2 + ["Conv", "Conv", "Add"] * (rank - 1)
    assert proto.graph.node[0].name == "conv_1_dw"
    assert proto.graph.node[-1].output[0] == "y"
    assert len({n.name for n in proto.graph.node}) == len(kinds)


def test_the_runtime_ends_a_chain_before_it_begins_the_next(tmp_path: Path) -> None:
    """Else the depthwise convs' outputs of all chains are held at once: r times the memory."""
    original = opened(conv_model(weight=weights(16, 16, 3, 3), conv_pads=[1] * 4), tmp_path)
    made = split_all(original, "sum")
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = ort.InferenceSession(
        proto_of(made).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    session.run(None, feeds(made))
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    groups = [
        "dw" if event["args"]["input_type_shape"][1]["float"][1] == 1 else "pw"
        for event in sorted(events, key=lambda event: event["ts"])
        if event.get("args", {}).get("op_name") == "Conv" and event["name"].endswith("_time")
    ]
    assert len(groups) == 18
    assert groups == ["dw", "pw"] * 9


def test_an_identity_among_the_branches(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="conv", pads=[1] * 4),
        node("Add", ["a", "x"], ["y"], name="sum"),
    ]
    original = opened(model(nodes, {"w": weights(4, 4, 3, 3)}), tmp_path)
    conv = original.conv("conv")
    edit = Rewrite("sum", "x", ((conv,), ()), drop=("conv",))
    proto = check(original, original.rewrite([edit]))
    assert [n.op_type for n in proto.graph.node] == ["Conv", "Add"]


def bn_nodes(opset: int = 17) -> tuple[list[Any], dict[str, np.ndarray]]:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="conv"),
        node("BatchNormalization", ["a", "g", "b", "m", "v"], ["c"], name="bn", epsilon=1e-3),
        node("Relu", ["c"], ["y"], name="relu"),
    ]
    constants = {"w": weights(6, 4, 3, 3), "g": weights(6), "b": weights(6, seed=1),
                 "m": weights(6, seed=2), "v": weights(6, seed=3) ** 2}  # fmt: skip
    return nodes, constants


def folded(conv: Conv, affine: Affine) -> Conv:
    weight = conv.weight.astype(np.float64) * affine.scale.reshape(-1, 1, 1, 1)
    bias = 0 if conv.bias is None else conv.bias.astype(np.float64)
    return Conv(
        weight, bias * affine.scale + affine.shift, conv.stride, conv.padding, conv.dilation
    )


@pytest.mark.parametrize("opset", [7, 9, 14, 15, 21])
def test_a_folded_conv_keeps_its_name(opset: int, tmp_path: Path) -> None:
    nodes, constants = bn_nodes()
    original = opened(model(nodes, constants, opset=opset), tmp_path)
    conv = folded(original.conv("conv"), original.affine("bn"))
    rewritten = original.rewrite([Rewrite("bn", "x", ((conv,),), drop=("conv",))])
    proto = check(original, rewritten)
    assert [n.name for n in proto.graph.node] == ["conv", "relu"]
    assert [n.output[0] for n in proto.graph.node] == ["c", "y"]
    assert [i.name for i in proto.graph.initializer] == ["conv.weight", "conv.bias"]
    assert {i.data_type for i in proto.graph.initializer} == {TensorProto.FLOAT}


def test_an_empty_chain_sends_the_readers_to_the_source(tmp_path: Path) -> None:
    nodes, constants = bn_nodes()
    original = opened(model(nodes, constants), tmp_path)
    conv = folded(original.conv("conv"), original.affine("bn"))
    edits = [Rewrite("conv", "x", ((conv,),)), Rewrite("bn", "a", ((),))]
    proto = check(original, original.rewrite(edits))
    assert [n.op_type for n in proto.graph.node] == ["Conv", "Relu"]
    assert list(proto.graph.node[1].input) == ["a"]


def test_an_empty_chain_at_an_output_is_an_identity(tmp_path: Path) -> None:
    nodes, constants = bn_nodes()
    original = opened(model(nodes[:2], constants, outputs=["c"]), tmp_path)
    conv = folded(original.conv("conv"), original.affine("bn"))
    edits = [Rewrite("conv", "x", ((conv,),)), Rewrite("bn", "a", ((),))]
    proto = check(original, original.rewrite(edits))
    assert [n.op_type for n in proto.graph.node] == ["Conv", "Identity"]


def test_an_alias_redirects_readers(tmp_path: Path) -> None:
    """conv -> Transpose -> affine: the affine goes into the conv, its readers to the Transpose."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="conv"),
        node("Transpose", ["a"], ["t"], name="turn", perm=[0, 2, 3, 1]),
        node("Mul", ["t", "s"], ["m"], name="scale"),
        node("Relu", ["m"], ["y"], name="relu"),
    ]
    constants = {"w": weights(6, 4, 3, 3), "s": weights(6, seed=1)}
    original = opened(model(nodes, constants), tmp_path)
    scale = original.graph().node("scale")
    assert (scale.op, scale.attrs["axis"]) == ("affine", 3)
    conv = folded(original.conv("conv"), original.affine("scale"))
    edit = Rewrite("conv", "x", ((conv,),), drop=("scale",), alias={"m": "t"})
    proto = check(original, original.rewrite([edit]))
    assert [n.op_type for n in proto.graph.node] == ["Conv", "Transpose", "Relu"]


def test_an_alias_of_an_output_stays_under_its_name(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="conv"),
        node("Transpose", ["a"], ["t"], name="turn", perm=[0, 2, 3, 1]),
        node("Mul", ["t", "s"], ["y"], name="scale"),
    ]
    constants = {"w": weights(6, 4, 3, 3), "s": weights(6, seed=1)}
    original = opened(model(nodes, constants), tmp_path)
    conv = folded(original.conv("conv"), original.affine("scale"))
    edit = Rewrite("conv", "x", ((conv,),), drop=("scale",), alias={"y": "t"})
    proto = check(original, original.rewrite([edit]))
    assert [n.op_type for n in proto.graph.node] == ["Conv", "Transpose", "Identity"]


@pytest.mark.parametrize("op", ["Gemm", "Gemm, transposed", "MatMul", "MatMul of three axes"])
def test_a_linear_layer_stays_linear(op: str, tmp_path: Path) -> None:
    weight, bias = weights(5, 8), weights(5, seed=1)
    shape = (2, 3, 8) if op.endswith("axes") else (2, 8)
    gemm = op.startswith("Gemm")
    turned = op == "Gemm, transposed"
    attributes = {"alpha": 0.5, "beta": 2.0, "transB": int(turned)} if gemm else {}
    linear = node(
        op.split()[0].rstrip(","), ["x", "w", *(["b"] if gemm else [])], ["a"], name="fc",
        **attributes,
    )  # fmt: skip
    nodes = [linear, node("Mul", ["a", "s"], ["y"], name="scale")]
    constants = {"w": weight if turned else weight.T.copy(), "s": weights(5, seed=2)}
    constants |= {"b": bias} if gemm else {}
    original = opened(model(nodes, constants, inputs={"x": shape}), tmp_path)
    fc = original.graph().node("fc")
    assert fc.op == "linear"
    assert fc.geometry is not None
    assert (fc.geometry.in_channels, fc.geometry.out_channels) == (8, 5)
    assert (fc.geometry.batch, fc.geometry.output_size) == (2, shape[1:-1])
    conv, affine = original.conv("fc"), original.affine("scale")
    start = np.zeros(5) if conv.bias is None else conv.bias
    merged = Conv(conv.weight * affine.scale[:, None], start * affine.scale + 1.0, (), (), ())
    rewritten = original.rewrite([Rewrite("scale", "x", ((merged,),), drop=("fc",))])
    inputs = feeds(original)
    after = run(rewritten, inputs)
    before = run(original, inputs)
    assert difference({"y": before["y"] + 1.0}, after) < 1e-5
    # a MatMul has no place for a bias: with data of two axes it becomes a Gemm
    kind = "MatMul" if op.endswith("axes") else "Gemm"
    assert proto_of(rewritten).graph.node[0].op_type == kind


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_conv_stays_one(groups: int, tmp_path: Path) -> None:
    nodes = [
        node("ConvTranspose", ["x", "w", "b"], ["a"], name="up", strides=[2, 3],
             pads=[0, 1, 1, 0], output_padding=[1, 0], group=groups),
        node("Mul", ["a", "s"], ["y"], name="scale"),
    ]  # fmt: skip
    out = 6
    constants = {"w": weights(4, out // groups, 3, 3), "b": weights(out),
                 "s": weights(out, 1, 1, seed=1)}  # fmt: skip
    original = opened(model(nodes, constants), tmp_path)
    up = original.graph().node("up")
    assert up.op == "conv_transpose"
    assert up.geometry is not None
    assert (up.geometry.in_channels, up.geometry.out_channels) == (4, out)
    conv, affine = original.conv("up"), original.affine("scale")
    assert conv.transposed
    assert conv.weight.shape == (out, 4 // groups, 3, 3)
    assert conv.bias is not None
    merged = Conv(
        conv.weight * affine.scale.reshape(-1, 1, 1, 1), conv.bias * affine.scale, conv.stride,
        conv.padding, conv.dilation, conv.groups, transposed=True,
        output_padding=conv.output_padding,
    )  # fmt: skip
    proto = check(original, original.rewrite([Rewrite("scale", "x", ((merged,),), drop=("up",))]))
    assert [(n.op_type, n.name) for n in proto.graph.node] == [("ConvTranspose", "up")]


def test_the_original_is_untouched(tmp_path: Path) -> None:
    original = opened(conv_model(), tmp_path)
    before = proto_of(original).SerializeToString(deterministic=True)
    split_all(original)
    assert proto_of(original).SerializeToString(deterministic=True) == before
    assert before == conv_model().SerializeToString(deterministic=True)


def test_only_what_died_goes(tmp_path: Path) -> None:
    nodes = [
        node("Constant", [], ["unused"], value_int=3),
        node("Identity", ["w0"], ["w"]),
        node("Conv", ["x", "w", "shared"], ["a"], name="conv"),
        node("Conv", ["a", "w1", "shared"], ["y"], name="other", group=2),
    ]
    constants = {"w0": weights(4, 4, 3, 3), "shared": weights(4), "w1": weights(4, 2, 3, 3),
                 "never": weights(3)}  # fmt: skip
    proto = model(nodes, constants)
    proto.graph.value_info.append(helper.make_tensor_value_info("w", 1, [4, 4, 3, 3]))
    proto.graph.value_info.append(helper.make_tensor_value_info("a", 1, [1, 4, 7, 6]))
    original = opened(proto, tmp_path)
    after = check(original, split_all(original))
    kept = [i.name for i in after.graph.initializer]
    assert kept == ["shared", "w1", "never", "conv_dw.weight", "conv_pw.weight", "conv_pw.bias"]
    assert [n.op_type for n in after.graph.node] == ["Constant", "Conv", "Conv", "Conv"]
    assert [v.name for v in after.graph.value_info] == ["a"]


def test_new_names_do_not_collide(tmp_path: Path) -> None:
    nodes = [
        node("Relu", ["x"], ["conv_dw.weight"], name="conv_dw"),
        node("Conv", ["conv_dw.weight", "w"], ["conv_dw_out"], name="conv"),
        node("Relu", ["conv_dw_out"], ["y"], name="conv_pw"),
    ]
    original = opened(model(nodes, {"w": weights(4, 4, 3, 3)}), tmp_path)
    proto = check(original, split_all(original))
    names = [n.name for n in proto.graph.node]
    assert len(set(names)) == len(names) == 4


def test_what_the_exporter_noted_goes_with_the_layer(tmp_path: Path) -> None:
    proto = conv_model(opset=21, ir=10)
    proto.graph.node[0].metadata_props.add(key="scope", value="net.conv")
    original = opened(proto, tmp_path)
    after = check(original, split_all(original))
    assert [n.metadata_props[0].value for n in after.graph.node] == ["net.conv"] * 2


BAD: dict[str, tuple[list[Rewrite], str]] = {
    "unknown node": ([Rewrite("nobody", "x", ((),))], "no node 'nobody'"),
    "no branches": ([Rewrite("relu", "c", ())], "no branches to take its place"),
    "twice": ([Rewrite("bn", "a", ((),)), Rewrite("bn", "a", ((),))], "two rewrites"),
    "value gone": (
        [Rewrite("relu", "c", ((),), drop=("conv",))],
        "'a' is removed, but bn reads it",
    ),
    "source too late": ([Rewrite("conv", "c", ((),))], "computed only after"),
    "foreign alias": ([Rewrite("conv", "x", ((),), alias={"c": "a"})], "no rewrite drops it"),
}


@pytest.mark.parametrize(("edits", "words"), BAD.values(), ids=BAD)
def test_an_edit_that_does_not_fit_is_refused(
    edits: list[Rewrite], words: str, tmp_path: Path
) -> None:
    nodes, constants = bn_nodes()
    original = opened(model(nodes, constants), tmp_path)
    with pytest.raises(UnsupportedError, match=words):
        original.rewrite(edits)


def test_other_borders_cannot_be_written(tmp_path: Path) -> None:
    original = opened(conv_model(), tmp_path)
    conv = Conv(weights(6, 4, 3, 3), None, ONE, ((1, 1), (1, 1)), ONE, pad_mode="reflect")
    with pytest.raises(UnsupportedError, match="reflect"):
        original.rewrite([Rewrite("conv", "x", ((conv,),))])


def test_rewrites_beside_subgraphs(tmp_path: Path) -> None:
    """A value that the body of an If reads keeps its name when its maker is bypassed."""
    branch = helper.make_graph(
        [node("Relu", ["c"], ["t"])], "then", [], [helper.make_tensor_value_info("t", 1, None)]
    )
    other = helper.make_graph(
        [node("Neg", ["c"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)]
    )
    nodes, constants = bn_nodes()
    nodes = [
        *nodes[:2],
        node("If", ["flag"], ["y"], name="if", then_branch=branch, else_branch=other),
    ]
    proto = model(nodes, constants | {"flag": np.array(True)})
    original = opened(proto, tmp_path)
    assert original.graph().node("if").inputs == ("c",)
    conv = folded(original.conv("conv"), original.affine("bn"))
    edits = [Rewrite("conv", "x", ((conv,),)), Rewrite("bn", "a", ((),))]
    after = check(original, original.rewrite(edits))
    assert [n.op_type for n in after.graph.node] == ["Conv", "Identity", "If"]
