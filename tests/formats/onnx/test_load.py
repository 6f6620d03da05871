"""Files that cannot be opened, each with its message; and what is read from those that can."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dacconv.api import fuse, plan
from dacconv.errors import DacconvError, FormatError, UnsupportedError
from dacconv.formats.base import LoadOptions
from dacconv.formats.onnx.model import load
from tests.onnx_nets import (
    conv_model,
    difference,
    feeds,
    model,
    node,
    opened,
    run,
    split_all,
    weights,
)


def small_net() -> onnx.ModelProto:
    nodes = [
        node("Conv", ["x", "w", "b"], ["a"], name="conv", pads=[1] * 4),
        node("BatchNormalization", ["a", "g", "g", "g", "v"], ["c"], name="bn"),
        node("Shape", ["c"], ["s"]),
        node("Reshape", ["c", "s"], ["d"]),
        node("GlobalAveragePool", ["d"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "fc.weight"], ["y"], transB=1),
    ]
    constants = {"w": weights(6, 4, 3, 3), "b": weights(6), "g": weights(6),
                 "v": weights(6) ** 2, "fc.weight": weights(5, 6)}  # fmt: skip
    return model(nodes, constants)


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "text": (b"once upon a time there was a network\n" * 20, "not a readable ONNX file"),
    "zip": (b"PK\x03\x04" + bytes(200), "not a readable ONNX file"),
    "pickle": (b"\x80\x02}q\x00.", "not a readable ONNX file|no graph"),
    "zeros": (bytes(100), "not a readable ONNX file"),
    "noise": (random.Random(0).randbytes(1000), "not a readable ONNX file"),
    "no graph": (onnx.ModelProto(ir_version=8).SerializeToString(), "no graph"),
    "no IR version": (
        onnx.ModelProto(graph=onnx.GraphProto(name="g")).SerializeToString(),
        "does not state its IR version",
    ),
}


@pytest.mark.parametrize(("data", "words"), BAD.values(), ids=BAD)
def test_what_is_no_onnx_file_is_told(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=words) as caught:
        load(path, LoadOptions())
    assert str(path) in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.onnx"):
        with pytest.raises(FormatError, match="cannot be read"):
            load(path, LoadOptions())


def test_truncation_anywhere_is_told(tmp_path: Path) -> None:
    data = small_net().SerializeToString()
    path = tmp_path / "net.onnx"
    for size in (*range(1, len(data), max(len(data) // 150, 1)), len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(FormatError):
            load(path, LoadOptions())


def test_flipped_bits_give_a_message_or_a_model(tmp_path: Path) -> None:
    """Whatever is flipped, nothing but our own error comes out."""
    data = small_net().SerializeToString()
    path = tmp_path / "net.onnx"
    rng = random.Random(1)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 5])):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            opened_model = load(path, LoadOptions())
            for each in opened_model.graph().nodes:
                if each.op in ("conv", "linear", "conv_transpose") and not each.skip:
                    opened_model.conv(each.name)
                if each.op == "affine" and not each.skip:
                    opened_model.affine(each.name)
        except DacconvError:
            refused += 1
    assert refused > 20


def test_a_tensor_that_does_not_fit_its_shape(tmp_path: Path) -> None:
    proto = conv_model()
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    with pytest.raises(
        FormatError, match=r"'conv.weight' has 860 bytes, but its shape .* needs 864"
    ):
        opened(proto, tmp_path)


def test_typed_data_that_does_not_fit_its_shape(tmp_path: Path) -> None:
    proto = conv_model(bias=False)
    tensor = helper.make_tensor("conv.weight", 1, [6, 4, 3, 3], weights(6, 4, 3, 3).reshape(-1))
    del tensor.float_data[-1]
    proto.graph.initializer[0].CopyFrom(tensor)
    with pytest.raises(FormatError, match=r"conv.weight"):
        opened(proto, tmp_path).conv("conv")


def test_a_value_that_nothing_makes(tmp_path: Path) -> None:
    proto = conv_model()
    del proto.graph.initializer[0]
    with pytest.raises(FormatError, match=r"'conv' \(Conv\) reads value 'conv.weight'"):
        opened(proto, tmp_path)


def test_an_output_that_nothing_makes(tmp_path: Path) -> None:
    proto = conv_model()
    proto.graph.output[0].name = "z"
    with pytest.raises(FormatError, match="output 'z'"):
        opened(proto, tmp_path)


def test_a_value_that_is_made_twice(tmp_path: Path) -> None:
    proto = conv_model()
    proto.graph.node.append(proto.graph.node[0])
    with pytest.raises(FormatError, match="computed twice"):
        opened(proto, tmp_path)


def test_nodes_out_of_order_are_sorted(tmp_path: Path) -> None:
    nodes = [node("Relu", ["a"], ["y"], name="relu"), node("Conv", ["x", "w"], ["a"], name="conv")]
    original = opened(model(nodes, {"w": weights(6, 4, 3, 3)}), tmp_path)
    assert [n.name for n in original.graph().nodes] == ["conv", "relu"]
    assert any("sorted" in note for note in original.graph().notes)


def test_a_circle_is_told(tmp_path: Path) -> None:
    nodes = [node("Relu", ["a"], ["y"]), node("Add", ["y", "x"], ["a"])]
    with pytest.raises(FormatError, match="circle"):
        opened(model(nodes, {}), tmp_path)


def test_old_and_missing_versions(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="opset 6 is too old"):
        opened(conv_model(opset=6), tmp_path)
    with pytest.raises(UnsupportedError, match="IR version 2 is too old"):
        opened(conv_model(ir=2), tmp_path)
    proto = conv_model()
    del proto.opset_import[:]
    with pytest.raises(FormatError, match="does not state its ONNX opset"):
        opened(proto, tmp_path)


def test_a_newer_opset_is_told(tmp_path: Path) -> None:
    proto = conv_model()
    proto.opset_import[0].version = 999
    graph = opened(proto, tmp_path).graph()
    assert any("opset 999 is newer" in note for note in graph.notes)
    geometry = graph.nodes[0].geometry
    assert geometry is not None
    assert geometry.output_size == (7, 6)


def external(proto: onnx.ModelProto, folder: Path, **options: Any) -> Path:
    path = folder / "net.onnx"
    onnx.save(proto, path, save_as_external_data=True, size_threshold=0, **options)
    return path


@pytest.mark.parametrize("one_file", [True, False])
def test_external_data(one_file: bool, tmp_path: Path) -> None:
    options = {"location": "net.data"} if one_file else {}
    path = external(small_net(), tmp_path, all_tensors_to_one_file=one_file, **options)
    original = load(path, LoadOptions())
    assert original.document.external
    names = {file.name for file in original.files}
    assert {"net.onnx"} < names
    inputs = feeds(original)
    plain = opened(small_net(), tmp_path)
    assert difference(run(plain, inputs), run(original, inputs)) == 0
    assert difference(run(plain, inputs), run(split_all(original), inputs)) < 1e-5


def test_missing_external_data(tmp_path: Path) -> None:
    path = external(small_net(), tmp_path, location="net.data")
    (tmp_path / "net.data").unlink()
    with pytest.raises(FormatError, match=r"'w' .*'net.data', which does not exist"):
        load(path, LoadOptions())


def test_short_external_data(tmp_path: Path) -> None:
    path = external(small_net(), tmp_path, location="net.data")
    data = tmp_path / "net.data"
    data.write_bytes(data.read_bytes()[:-8])
    with pytest.raises(FormatError, match=r"'fc.weight' needs bytes .* 'net.data', which has only"):
        load(path, LoadOptions())


def tampered(folder: Path, **entries: str) -> Path:
    path = external(small_net(), folder, location="net.data")
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        entry.value = entries.pop(entry.key, entry.value)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    "location", ["../secret.data", "/etc/hostname", "sub/../../secret.data", ""]
)
def test_external_data_outside_the_folder(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret.data").write_bytes(bytes(10_000))
    folder = tmp_path / "model"
    folder.mkdir()
    path = tampered(folder, location=location)
    with pytest.raises(FormatError, match=r"'w' .* outside the model's folder"):
        load(path, LoadOptions())


def test_external_data_behind_a_link_to_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret.data").write_bytes(bytes(10_000))
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(small_net(), folder, location="net.data")
    (folder / "net.data").unlink()
    (folder / "net.data").symlink_to(tmp_path / "secret.data")
    with pytest.raises(FormatError, match="outside the model's folder"):
        load(path, LoadOptions())


def test_a_download_cache_of_links(tmp_path: Path) -> None:
    """Model and data are links into one folder of blobs, as in the Hugging Face cache."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    external(small_net(), blobs, location="net.data")
    for name in ("net.onnx", "net.data"):
        (blobs / name).rename(blobs / f"0{name}")
        (snapshot / name).symlink_to(blobs / f"0{name}")
    assert load(snapshot / "net.onnx", LoadOptions()).document.external


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": "many"}, "not a number"),
        ({"offset": "-4"}, "needs bytes -4"),
        ({"length": "99999999"}, "which has only"),
        ({"length": "8"}, "has 8 bytes|finds 8 bytes"),
    ],
)
def test_external_entries_that_make_no_sense(
    entries: dict[str, str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=words):
        load(tampered(tmp_path, **entries), LoadOptions())


def test_external_data_in_attributes_is_brought_in(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(weights(6, 4, 3, 3), "w")
    (tmp_path / "w.data").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.data")
    nodes = [
        node("Constant", [], ["w"], value=tensor),
        node("Conv", ["x", "w"], ["y"], name="conv"),
    ]
    original = opened(model(nodes, {}), tmp_path)
    np.testing.assert_array_equal(original.conv("conv").weight, weights(6, 4, 3, 3))


def function_model(inner: str) -> onnx.ModelProto:
    """``block`` calls ``leaf``, which holds a Conv or a Relu."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    body = {
        "Conv": [node("Conv", ["a", "w"], ["h"]), node("Relu", ["h"], ["b"])],
        "Relu": [node("Relu", ["a"], ["h"]), node("Add", ["h", "w"], ["b"])],
    }[inner]
    leaf = helper.make_function("mine", "leaf", ["a", "w"], ["b"], body, opsets)
    call = [node("leaf", ["a", "w"], ["b"], domain="mine", name="call")]
    block = helper.make_function("mine", "block", ["a", "w"], ["b"], call, opsets)
    plain = helper.make_function("mine", "plain", ["a"], ["b"], [node("Neg", ["a"], ["b"])], opsets)
    shape = (4, 4, 3, 3) if inner == "Conv" else (1, 1, 1, 1)
    nodes = [
        node("block", ["x", "w"], ["m"], domain="mine", name="one"),
        node("block", ["m", "w"], ["p"], domain="mine", name="two"),
        node("plain", ["p"], ["y"], domain="mine", name="three"),
    ]
    return model(nodes, {"w": weights(*shape)}, imports=[("mine", 1)],
                 functions=[leaf, block, plain])  # fmt: skip


def test_functions_with_convs_are_inlined(tmp_path: Path) -> None:
    original = opened(function_model("Conv"), tmp_path)
    graph = original.graph()
    assert [n.kind for n in graph.nodes] == ["Conv", "Relu", "Conv", "Relu", "mine::plain"]
    assert any("inlined the local functions" in note for note in graph.notes)
    assert graph.nodes[2].geometry is not None
    assert graph.nodes[2].geometry.output_size == (5, 4)
    assert len({n.name for n in graph.nodes}) == 5
    inputs = feeds(original)
    assert difference(run(original, inputs), run(split_all(original), inputs)) < 1e-5


def test_functions_without_convs_stay(tmp_path: Path) -> None:
    original = opened(function_model("Relu"), tmp_path)
    assert [n.kind for n in original.graph().nodes] == ["mine::block"] * 2 + ["mine::plain"]
    assert not original.graph().notes
    run(original, feeds(original))


def quantised_conv(name: str, source: str, result: str) -> tuple[list[Any], dict[str, np.ndarray]]:
    nodes = [
        node("QuantizeLinear", [source, "s", "z"], [f"{name}.q"]),
        node("QLinearConv", [f"{name}.q", "s", "z", "wq", "s", "wz", "s", "z"], [f"{name}.o"],
             name=name),
        node("DequantizeLinear", [f"{name}.o", "s", "z"], [result]),
    ]  # fmt: skip
    constants = {
        "s": np.array(0.1, np.float32), "z": np.array(0, np.uint8), "wz": np.array(0, np.int8),
        "wq": np.ones((4, 4, 3, 3), np.int8),
    }  # fmt: skip
    return nodes, constants


def test_a_quantised_model_is_refused(tmp_path: Path) -> None:
    nodes, constants = quantised_conv("conv", "x", "y")
    net = opened(model(nodes, constants), tmp_path)
    with pytest.raises(UnsupportedError, match=r"quantised model: all 1 .*QLinearConv") as caught:
        plan(net, rank=1)
    assert "floating-point model" in str(caught.value)


def test_weights_behind_dequantize_are_quantised(tmp_path: Path) -> None:
    nodes = [
        node("DequantizeLinear", ["wq", "s"], ["w"]),
        node("Conv", ["x", "w"], ["y"], name="conv"),
    ]
    constants = {"wq": np.ones((4, 4, 3, 3), np.int8), "s": np.array(0.1, np.float32)}
    net = opened(model(nodes, constants), tmp_path)
    with pytest.raises(UnsupportedError, match=r"Conv behind DequantizeLinear"):
        fuse(net)


def test_a_partly_quantised_model_gets_skips(tmp_path: Path) -> None:
    nodes, constants = quantised_conv("first", "x", "a")
    nodes.append(node("Conv", ["a", "w"], ["y"], name="second"))
    graph = opened(model(nodes, constants | {"w": weights(3, 4, 3, 3)}), tmp_path).graph()
    first, second = graph.node("first"), graph.node("second")
    assert first.op == second.op == "conv"
    assert first.skip is not None
    assert "quantised (QLinearConv)" in first.skip
    assert first.geometry is not None
    assert second.skip is None


def test_dynamic_quantisation_is_refused(tmp_path: Path) -> None:
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("ConvInteger", ["q", "wq", "z"], ["i"], name="conv"),
        node("Cast", ["i"], ["y"], to=1),
    ]
    net = opened(model(nodes, {"wq": np.ones((4, 4, 3, 3), np.int8)}), tmp_path)
    with pytest.raises(UnsupportedError, match="ConvInteger"):
        plan(net, precision="int8")


def test_a_repeated_initializer_is_noted(tmp_path: Path) -> None:
    proto = conv_model()
    proto.graph.initializer.append(proto.graph.initializer[0])
    graph = opened(proto, tmp_path).graph()
    assert any("'conv.weight' occurs twice" in note for note in graph.notes)


def test_weights_are_not_copied(tmp_path: Path) -> None:
    weight = opened(conv_model(), tmp_path).conv("conv").weight
    assert not weight.flags.owndata
    assert not weight.flags.writeable


@pytest.mark.parametrize(
    ("op", "inputs"),
    [("Shape", []), ("ScatterND", ["x"]), ("ScatterND", ["x", "i"]), ("Add", ["x"]),
     ("BatchNormalization", ["x", "w", "w", "w"]), ("Pad", []), ("Concat", [])],
)  # fmt: skip
def test_operators_without_their_inputs_are_refused(
    op: str, inputs: list[str], tmp_path: Path
) -> None:
    proto = conv_model()
    proto.graph.initializer.append(numpy_helper.from_array(weights(4), "w"))
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 4), np.int64), "i"))
    proto.graph.node.append(node(op, inputs, ["z"]))
    if op == "Concat":  # any number of inputs, none included
        assert opened(proto, tmp_path).graph().nodes[-1].op == "other"
        return
    with pytest.raises(FormatError, match="has fewer inputs than it needs"):
        opened(proto, tmp_path)


def test_a_bias_of_another_size_is_a_reason_to_leave_the_conv_alone(tmp_path: Path) -> None:
    proto = conv_model()
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(weights(5), "conv.bias"))
    (conv,) = opened(proto, tmp_path).graph().nodes
    assert conv.skip == "its bias has the shape [5], which does not fit its weight [6, 4, 3, 3]"


def test_a_batch_norm_of_another_size_is_not_merged(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="conv"),
        node("BatchNormalization", ["a", *["g"] * 4], ["y"], name="bn"),
    ]
    proto = model(nodes[:1], {"w": weights(6, 4, 3, 3), "g": weights(5)}, outputs=("a",))
    proto.graph.node.append(nodes[1])
    proto.graph.output[0].name = "y"
    batch_norm = opened(proto, tmp_path).graph().nodes[1]
    assert batch_norm.skip == "BatchNormalization of 6 channels with parameters of shape (5,)"


@pytest.mark.parametrize("amounts", [[0, 0, 1, 1], [[0, 0, 1, 1], [0, 0, 1, 1]], [0] * 12, [1]])
def test_a_pad_of_any_amounts_is_read(amounts: Any, tmp_path: Path) -> None:
    proto = conv_model()
    proto.graph.initializer.append(numpy_helper.from_array(np.array(amounts, np.int64), "p"))
    proto.graph.node[0].input[0] = "padded"
    proto.graph.node.insert(0, node("Pad", ["x", "p"], ["padded"]))
    pad = opened(proto, tmp_path).graph().nodes[0]
    assert pad.op == ("pad" if np.size(amounts) == 8 else "other")


@pytest.mark.parametrize("opset", [-(2**63), 0, 2**62])
def test_an_impossible_opset(opset: int, tmp_path: Path) -> None:
    proto = conv_model()
    proto.opset_import[0].version = opset
    try:
        assert "is newer than" in opened(proto, tmp_path).graph().notes[0]
    except DacconvError:
        assert opset < 7


def test_layers_whose_input_is_a_constant_are_left_alone(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["k", "w"], ["a"], name="conv"),
        node("BatchNormalization", ["k", *["g"] * 4], ["b"], name="bn"),
        node("Relu", ["x"], ["y"]),
    ]
    proto = model(nodes, {"k": weights(1, 4, 5, 5), "w": weights(6, 4, 3, 3), "g": weights(4)})
    conv, batch_norm, _ = opened(proto, tmp_path).graph().nodes
    assert conv.skip == "its input is a constant"
    assert batch_norm.op == "other"
