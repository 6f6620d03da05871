"""Small ONNX models written by hand, and the exact split that the tests rewrite them with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dacconv.decompositions.forms import Reordering, lower
from dacconv.formats.base import LoadOptions
from dacconv.formats.onnx.model import OnnxModel, load
from dacconv.graph.types import Conv, Node, Rewrite

DTYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.float64): TensorProto.DOUBLE,
    np.dtype(ml_dtypes.bfloat16): TensorProto.BFLOAT16,
}


def weights(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    values = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return (values / np.sqrt(max(np.prod(shape[1:]), 1))).astype(dtype)


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Any:
    return helper.make_node(op, list(inputs), list(outputs), **attributes)


def model(
    nodes: Sequence[Any],
    constants: Mapping[str, np.ndarray],
    *,
    inputs: Mapping[str, Sequence[int | str] | None] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    ir: int = 8,
    dtype: int = TensorProto.FLOAT,
    constants_as_inputs: bool = False,
    imports: Sequence[tuple[str, int]] = (),
    **rest: Any,
) -> onnx.ModelProto:
    taken = {"x": (1, 4, 9, 8)} if inputs is None else inputs
    values = [helper.make_tensor_value_info(n, dtype, s) for n, s in taken.items()]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    if constants_as_inputs:
        values += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    graph = helper.make_graph(
        list(nodes),
        "net",
        values,
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        tensors,
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(*i) for i in imports)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=ir, **rest)
    for value, known in zip(
        made.graph.output, onnx.shape_inference.infer_shapes(made).graph.output, strict=True
    ):
        value.CopyFrom(known)  # onnx's checker wants the outputs' shapes
        value.type.tensor_type.shape.SetInParent()
    return made


def conv_model(
    weight: np.ndarray | None = None, *, bias: bool = True, size: int = 9, **options: Any
) -> onnx.ModelProto:
    """One Conv called ``conv`` from ``x`` to ``y``; ``conv_`` options are its attributes."""
    weight = weights(6, 4, 3, 3) if weight is None else weight
    attributes = {k[5:]: options.pop(k) for k in list(options) if k.startswith("conv_")}
    constants = {"conv.weight": weight}
    if bias:
        constants["conv.bias"] = weights(weight.shape[0], dtype=weight.dtype)
    groups = attributes.get("group", 1)
    options.setdefault(
        "inputs", {"x": (1, weight.shape[1] * groups, *(size - i for i in range(weight.ndim - 2)))}
    )
    conv = node("Conv", ["x", *constants], ["y"], name="conv", **attributes)
    return model([conv], constants, dtype=DTYPES[weight.dtype], **options)


def save(proto: onnx.ModelProto, folder: Path, name: str = "net.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def opened(
    proto: onnx.ModelProto, folder: Path, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> OnnxModel:
    return load(save(proto, folder), LoadOptions(input_shapes=shapes or {}))


def split(conv: Conv) -> tuple[Conv, Conv]:
    """The conv at full rank as depthwise (channel multiplier) and pointwise: exact."""
    out, each, *kernel = conv.weight.shape
    assert conv.groups == 1
    matrices = conv.weight.astype(np.float64).reshape(out, each, -1).transpose(1, 2, 0)
    u, s, vt = np.linalg.svd(matrices, full_matrices=False)
    rank = s.shape[1]
    depthwise = (u * s[:, None]).transpose(0, 2, 1).reshape(each * rank, 1, *kernel)
    ones = (1,) * len(kernel)
    pointwise = vt.reshape(each * rank, out).T.reshape(out, each * rank, *ones)
    first = Conv(depthwise, None, conv.stride, conv.padding, conv.dilation, each, conv.auto_pad)
    return first, Conv(pointwise, conv.bias, ones, ((0, 0),) * len(kernel), ones)


def splittable(opened_model: OnnxModel) -> list[Node]:
    return [
        n
        for n in opened_model.graph().nodes
        if n.op == "conv" and not n.skip and n.geometry is not None and n.geometry.groups == 1
    ]


def split_all(opened_model: OnnxModel, form: str = "multiplier") -> OnnxModel:
    """Every conv with one group split at full rank; convs that share a weight share the split."""
    parts: dict[str, tuple[Conv, Conv]] = {}
    edits, reorder = [], Reordering()
    for each in splittable(opened_model):
        conv = opened_model.conv(each.name)
        first, second = parts.setdefault(each.weight or each.name, split(conv))
        chain = (
            Conv(first.weight, None, conv.stride, conv.padding, conv.dilation, first.groups,
                 conv.auto_pad),
            Conv(second.weight, conv.bias, second.stride, second.padding, second.dilation),
        )  # fmt: skip
        edits.append(Rewrite(each.name, each.inputs[0], lower((chain,), form, reorder)))
    assert edits
    return opened_model.rewrite(edits)


def feeds(opened_model: OnnxModel, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        spec.name: rng.standard_normal([s or 1 for s in spec.shape or ()]).astype(spec.dtype)
        for spec in opened_model.inputs()
    }


def difference(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> float:
    """The largest error over all outputs, relative to the largest value of each."""
    assert list(first) == list(second)
    worst = 0.0
    for name, expected in first.items():
        actual = second[name]
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        scale = max(float(np.abs(expected.astype(np.float64)).max(initial=0)), 1e-30)
        error = np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max(initial=0)
        worst = max(worst, float(error) / scale)
    return worst


def run(opened_model: OnnxModel, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return opened_model.runner(threads=1)(inputs)
