"""Files that would take unbounded time or memory: refused, or read within bounds."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dacconv
from dacconv.conversion.verification import verify
from dacconv.errors import FormatError, UnsupportedError
from dacconv.formats.base import LoadOptions
from dacconv.formats.inputs import reason_not_runnable
from dacconv.formats.onnx import external as external_module
from dacconv.formats.onnx import functions
from dacconv.formats.onnx.model import load
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

HUGE = 2**62
SECONDS = 10
MEGABYTES = 400
OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
W = weights(4, 4, 3, 3)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def function(name: str, body: Sequence[Any]) -> onnx.FunctionProto:
    return helper.make_function("local", name, ["a", "w"], ["o"], list(body), OPSETS)


def call(name: str, source: str, result: str) -> onnx.NodeProto:
    return node(name, [source, "w"], [result], domain="local")


def calling(*bodies: onnx.FunctionProto) -> onnx.ModelProto:
    """A model that calls the first of some functions."""
    proto = model([node("Relu", ["x"], ["y"])], {"w": W}, imports=[("local", 1)])
    proto.graph.node[0].CopyFrom(call(bodies[0].name, "x", "y"))
    proto.functions.extend(bodies)
    return proto


def doubling(levels: int, leaf: str) -> onnx.ModelProto:
    """Functions that each call the next one twice."""
    last = [node("Conv", ["a", "w"], ["o"], pads=[1] * 4)] if leaf == "Conv" else [
        node(leaf, ["a"], ["o"])
    ]  # fmt: skip
    bodies = [
        function(f"f{i}", [call(f"f{i + 1}", "a", "h"), call(f"f{i + 1}", "h", "o")])
        for i in range(levels)
    ]
    return calling(*bodies, function(f"f{levels}", last))


@pytest.mark.parametrize("leaf", ["Conv", "Relu"])
def test_functions_that_double_are_refused(leaf: str, tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(FormatError, match="once every call is inlined"):
        opened(doubling(30, leaf), tmp_path)
    assert time.monotonic() - begin < SECONDS


def test_functions_that_double_a_little_are_inlined(tmp_path: Path) -> None:
    original = opened(doubling(4, "Conv"), tmp_path)
    assert sum(n.op == "conv" for n in original.graph().nodes) == 16


@pytest.mark.parametrize("leaf", ["Conv", "Relu"])
def test_functions_in_a_circle_are_refused(leaf: str, tmp_path: Path) -> None:
    last = [call("f", "a", "h"), node(leaf, ["h", "w"][: 2 if leaf == "Conv" else 1], ["o"])]
    with pytest.raises(FormatError, match="calls itself"):
        opened(calling(function("f", [call("g", "a", "o")]), function("g", last)), tmp_path)


@pytest.mark.parametrize("backwards", [False, True])
def test_functions_nested_too_deeply_are_refused(backwards: bool, tmp_path: Path) -> None:
    count = functions.DEEPEST_CALLS + 1
    bodies = [function(f"f{i}", [call(f"f{i + 1}", "a", "o")]) for i in range(count - 1)]
    bodies.append(function(f"f{count - 1}", [node("Conv", ["a", "w"], ["o"])]))
    proto = calling(*bodies)
    if backwards:
        reverse = list(proto.functions)[::-1]
        del proto.functions[:]
        proto.functions.extend(reverse)
    with pytest.raises(FormatError, match="in a chain of more than 200"):
        opened(proto, tmp_path)


def claiming(where: str, dims: list[int], **data: Any) -> onnx.ModelProto:
    """A model with one constant of impossible dimensions."""
    tensor = TensorProto(name="b", data_type=TensorProto.FLOAT, dims=dims, **data)
    nodes = [node("Conv", ["x", "w"], ["c"], name="conv")]
    if where == "constant node":
        nodes.append(node("Constant", [], ["b"], value=tensor))
    if where == "subgraph":
        body = helper.make_graph(
            [node("Add", ["c", "b"], ["z"])],
            "body",
            [],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
            [tensor],
        )
        nodes.append(node("If", ["condition"], ["y"], then_branch=body, else_branch=body))
    else:
        nodes.append(node("Add", ["c", "b"], ["y"]))
    proto = model(nodes[:1], {"w": W, "condition": np.array(True)}, outputs=("c",))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.output[0].name = "y"
    if where == "initializer":
        proto.graph.initializer.append(tensor)
    return proto


@pytest.mark.parametrize("where", ["initializer", "constant node", "subgraph"])
@pytest.mark.parametrize("dims", [[HUGE], [HUGE, HUGE], [2**31, 3, 3, 3]])
@pytest.mark.parametrize("data", [{}, {"float_data": [1.0]}, {"raw_data": b"1234"}])
def test_a_constant_larger_than_its_data(
    where: str, dims: list[int], data: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=r"constant 'b' has the shape \["):
        opened(claiming(where, dims, **data), tmp_path)


@pytest.mark.parametrize("kind", ["input", "output", "value_info"])
def test_a_value_with_an_impossible_axis(kind: str, tmp_path: Path) -> None:
    proto = conv_model()
    value = helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, HUGE])
    if kind == "value_info":
        proto.graph.value_info.append(value)
    else:
        value = getattr(proto.graph, kind)[0]
        value.type.tensor_type.shape.dim[1].dim_value = HUGE
    with pytest.raises(FormatError, match=r"has the shape \[.*axes of at most"):
        opened(proto, tmp_path)


def test_an_input_too_large_to_be_made(tmp_path: Path) -> None:
    original = opened(conv_model(inputs={"x": (1, 4, 2**20, 2**20)}), tmp_path)
    assert "1x4x1048576x1048576" in str(reason_not_runnable(original))
    with pytest.raises(UnsupportedError, match="more than the 2,147,483,648 elements"):
        verify(original, original)


def chain(op: str, count: int, **attributes: Any) -> list[Any]:
    return [node(op, [f"k{i}"] * 2, [f"k{i + 1}"], **attributes) for i in range(count)]


GROWING: dict[str, tuple[list[Any], dict[str, np.ndarray]]] = {
    "ConstantOfShape": ([node("ConstantOfShape", ["s"], ["k0"]), *chain("Add", 30)],
                        {"s": ints(2**14, 2**14)}),
    "ConstantOfShape 2^124": ([node("ConstantOfShape", ["s"], ["k0"]), *chain("Add", 30)],
                              {"s": ints(HUGE, HUGE)}),
    "Expand": ([node("Expand", ["a", "s"], ["k0"]), *chain("Mul", 30)],
               {"a": np.ones(1, np.float32), "s": ints(2**28)}),
    "Range": ([node("Range", ["a", "b", "d"], ["r"]), node("Cast", ["r"], ["k0"], to=1),
               *chain("Mul", 30)],
              {"a": np.int64(0), "b": np.int64(HUGE), "d": np.int64(1)}),
    "Gather": ([node("Gather", ["a", "i"], ["k0"]), *chain("Add", 30)],
               {"a": np.zeros((1, 2**15), np.float32), "i": np.zeros(2**16, np.int64)}),
    "Concat": ([node("Identity", ["a"], ["k0"]), *chain("Concat", 40, axis=1)],
               {"a": np.ones((2**10, 1), np.float32)}),
    "outer product": ([node("Mul", ["a", "b"], ["k0"]), *chain("Add", 30)],
                      {"a": np.ones((2**15, 1), np.float32), "b": np.ones(2**15, np.float32)}),
    "Where": ([node("Where", ["d", "a", "b"], ["k0"]), *chain("Add", 30)],
              {"d": np.array(True), "a": np.ones((2**15, 1), np.float32),
               "b": np.ones(2**15, np.float32)}),
    "long chain": ([node("ConstantOfShape", ["s"], ["k0"]), *chain("Add", 2000)],
                   {"s": ints(2**10, 2**10)}),
}  # fmt: skip


@pytest.mark.parametrize("name", GROWING)
def test_constants_that_grow_are_not_computed(name: str, tmp_path: Path) -> None:
    nodes, constants = GROWING[name]
    last = nodes[-1].output[0]
    conv = node("Conv", ["x", "w"], ["c"], name="conv")
    proto = model([conv], {"w": W, **constants}, outputs=("c",))
    proto.graph.node.extend([*nodes, node("MatMul", ["c", last], ["y"], name="product")])
    proto.graph.output[0].name = "y"
    path = save(proto, tmp_path)
    tracemalloc.start()
    begin = time.monotonic()
    try:
        original = load(path, LoadOptions())
        layers = {layer.name: layer.skip for layer in dacconv.survey(original)}
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert layers["conv"] is None
    assert "cannot be followed" in str(layers.get("product", "cannot be followed"))
    assert time.monotonic() - begin < SECONDS
    assert peak < MEGABYTES * 2**20


def test_a_large_weight_behind_a_chain_is_still_read(tmp_path: Path) -> None:
    """What is computed from much data may be much: the limits are those of generated values."""
    nodes = [
        node("Cast", ["h"], ["a"], to=TensorProto.FLOAT),
        node("Transpose", ["a"], ["b"], perm=[1, 0, 2, 3]),
        node("Mul", ["b", "scale"], ["w"]),
        node("Conv", ["x", "w"], ["y"], name="conv"),
    ]
    weight = weights(4, 6, 3, 3)
    constants = {"h": weight.astype(np.float16), "scale": np.ones((6, 1, 1, 1), np.float32)}
    original = opened(model(nodes, constants), tmp_path)
    expected = constants["h"].astype(np.float32).transpose(1, 0, 2, 3)
    np.testing.assert_array_equal(original.conv("conv").weight, expected)


def test_a_deep_chain_of_identities(tmp_path: Path) -> None:
    nodes = [
        node(
            "Identity",
            [
                "w0" if i else "w",
            ][:1],
            [f"w{i}"],
        )
        for i in range(1)
    ]
    nodes += [node("Identity", [f"w{i}"], [f"w{i + 1}"]) for i in range(3000)]
    nodes.append(node("Conv", ["x", "w3000"], ["y"], name="conv"))
    original = opened(model(nodes, {"w": W}), tmp_path)
    np.testing.assert_array_equal(original.conv("conv").weight, W)
    assert original.graph().nodes[-1].skip is None


def nested(levels: int) -> onnx.ModelProto:
    body = helper.make_graph(
        [node("Relu", ["x"], ["z"])],
        "body",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    for level in range(levels):
        branch = node("If", ["condition"], [f"z{level}"], then_branch=body, else_branch=body)
        result = helper.make_tensor_value_info(f"z{level}", TensorProto.FLOAT, None)
        body = helper.make_graph([branch], "body", [], [result])
    proto = conv_model()
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    proto.graph.node[0].output[0] = "c"
    proto.graph.node.append(node("If", ["condition"], ["y"], then_branch=body, else_branch=body))
    return proto


def test_subgraphs_nested_ten_deep(tmp_path: Path) -> None:
    original = opened(nested(10), tmp_path)
    assert [n.op for n in original.graph().nodes] == ["conv", "other"]


def test_subgraphs_nested_without_end_are_refused(tmp_path: Path) -> None:
    """Protobuf itself does not write such a file, so its bytes are made here."""

    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    inner = b""
    for _ in range(3000):  # graph: node (1); node: attribute (5); attribute: g (6)
        inner = field(6, field(1, field(5, inner))[:]) if inner else field(6, b"")
    proto = conv_model()
    data = proto.SerializeToString() + field(7, field(1, field(5, inner)))
    path = tmp_path / "net.onnx"
    path.write_bytes(data)
    with pytest.raises(FormatError, match="not a readable ONNX file"):
        load(path, LoadOptions())


def test_inputs_with_default_values_are_noted(tmp_path: Path) -> None:
    proto = conv_model(ir=8, constants_as_inputs=True)
    proto.graph.node[0].output[0] = "c"
    proto.graph.node.append(node("Mul", ["c", "gain"], ["d"]))
    proto.graph.node.append(node("Sigmoid", ["d"], ["y"]))
    gain = numpy_helper.from_array(weights(1, 6, 7, 6), "gain")
    proto.graph.initializer.append(gain)
    proto.graph.input.append(helper.make_tensor_value_info("gain", gain.data_type, gain.dims))
    original = opened(proto, tmp_path)
    (note,) = original.graph().notes
    assert note.startswith("inputs with a default value are taken as constants: conv.weight, ")
    converted = split_all(original)
    left = {value.name for value in converted.document.rest.input}
    assert left == {"x", "gain"}
    assert difference(run(original, feeds(original)), run(converted, feeds(original))) < 1e-5


def test_inputs_without_default_values_have_no_note(tmp_path: Path) -> None:
    assert not opened(conv_model(), tmp_path).graph().notes
    old = conv_model(ir=3, opset=7, constants_as_inputs=True)
    assert not opened(old, tmp_path).graph().notes


def outside(folder: Path, tensors: int, location: str = "net.data", size: int = 0) -> Path:
    """A model with ``tensors`` initializers that all point to the same bytes of a file."""
    weight = weights(6, 4, 3, 3)
    nodes = [node("Conv", ["x", f"w{i}"], [f"y{i}"], name=f"conv{i}") for i in range(tensors)]
    constants = {f"w{i}": weight for i in range(tensors)}
    proto = model(nodes, constants, outputs=[f"y{i}" for i in range(tensors)])
    for tensor in proto.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        tensor.external_data.add(key="length", value=str(weight.nbytes))
    (folder / "net.data").write_bytes(weight.tobytes() + bytes(size))
    return save(proto, folder)


def test_tied_external_weights_are_read(tmp_path: Path) -> None:
    original = load(outside(tmp_path, external_module.MOST_SHARED), LoadOptions())
    np.testing.assert_array_equal(original.conv("conv3").weight, weights(6, 4, 3, 3))


def test_many_tensors_that_claim_the_same_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="claim more than 8 times the 864 bytes"):
        load(outside(tmp_path, external_module.MOST_SHARED + 1), LoadOptions())


def test_external_tensors_of_attributes_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = outside(tmp_path, 1)
    proto = onnx.load(path, load_external_data=False)
    (tensor,) = proto.graph.initializer
    proto.graph.node.insert(0, node("Constant", [], ["w0"], value=tensor))
    del proto.graph.initializer[:]
    path.write_bytes(proto.SerializeToString())
    load(path, LoadOptions())
    monkeypatch.setattr(external_module, "LARGEST_INLINED", 100)
    with pytest.raises(FormatError, match="attributes and subgraphs have more than 100 bytes"):
        load(path, LoadOptions())


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_external_data_that_is_no_regular_file(kind: str, tmp_path: Path) -> None:
    path = outside(tmp_path, 1)
    data = tmp_path / "net.data"
    data.unlink()
    if kind == "fifo":
        os.mkfifo(data)
    elif kind == "folder":
        data.mkdir()
    else:
        data.symlink_to("/dev/zero")
    words = "outside the model's folder" if kind == "device" else "not a regular file"
    with pytest.raises(FormatError, match=words):
        load(path, LoadOptions())


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": str(HUGE)}, "which has only"),
        ({"offset": str(-HUGE), "length": str(HUGE)}, "needs bytes -"),
        ({"length": "-1"}, "which has only 864"),
        ({"length": "9" * 5000}, "not a number"),
        ({"offset": "1e3"}, "not a number"),
    ],
)
def test_external_ranges_beyond_the_file(
    entries: dict[str, str], words: str, tmp_path: Path
) -> None:
    path = outside(tmp_path, 1)
    proto = onnx.load(path, load_external_data=False)
    held = proto.graph.initializer[0].external_data
    for key, value in entries.items():
        held.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(FormatError, match=words):
        load(path, LoadOptions())
