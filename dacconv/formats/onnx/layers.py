"""Convolutions and linear layers: how they are read, and the reasons to leave them alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dacconv.formats.onnx.constants import Constants, names_of
from dacconv.formats.onnx.document import Document, Entry
from dacconv.formats.onnx.fixed_sizes import GraphFacts
from dacconv.formats.onnx.geometry import attributes_of, conv_attributes, itemsize, spatial
from dacconv.formats.onnx.inputs import real_inputs
from dacconv.formats.onnx.operators import CannotEvaluate
from dacconv.formats.onnx.shapes import InferredShapes
from dacconv.formats.onnx.tensors import FLOATS, type_name
from dacconv.graph.convs import swap_channels
from dacconv.graph.types import Array, Conv, Geometry, Shape

QUANTISED_CONVS = {"QLinearConv": 3, "ConvInteger": 1, "com.microsoft::QLinearConv": 3}
"""Operators on integer weights, and the input that is the weight."""
RUNTIME_CONVS = {
    "com.microsoft::FusedConv", "com.microsoft::NhwcFusedConv", "com.microsoft::NhwcConv",
    "com.microsoft.nchwc::Conv", "com.ms.internal.nhwc::Conv",
}  # fmt: skip
"""The convolutions in graphs that ONNX Runtime has optimised and saved."""


def conv_skip(entry: Entry, constants: Constants) -> str | None:
    """The reason why the weight or bias of a Conv or ConvTranspose cannot be replaced, or None."""
    weight = entry.proto.input[1] if len(entry.proto.input) > 1 else ""
    reason = weight_skip(weight, constants)
    if reason:
        return reason
    bias = entry.proto.input[2] if len(entry.proto.input) > 2 else ""
    if bias and bias not in constants:
        return "its bias is computed at runtime: it is not a constant"
    if bias and (reason := _bias_skip(entry, bias, constants)):
        return reason
    source = origin(weight, constants)
    others = [
        user
        for user in constants.users(source)
        if not (user.op == entry.op and origin(user.proto.input[1], constants) == source)
    ]
    if others:
        return f"its weight is also read by {names_of(others)}"
    return None


def _bias_skip(entry: Entry, bias: str, constants: Constants) -> str | None:
    """The reason why a constant bias does not fit its conv; None if it does."""
    try:
        shape, dims = constants.shape(bias), constants.shape(entry.proto.input[1])
    except CannotEvaluate as error:
        return f"its bias is computed in a way that cannot be followed ({error})"
    channels = dims[:1]
    if entry.op == "ConvTranspose":
        groups = int(attributes_of(entry).get("group", 1))
        channels = tuple(size * groups for size in dims[1:2])
    if shape != channels:
        return f"its bias has the shape {list(shape)}, which does not fit its weight {list(dims)}"
    return None


def weight_skip(weight: str, constants: Constants) -> str | None:
    """The reason why a weight cannot be read as floating-point numbers; None if it can."""
    document = constants.document
    if weight not in constants:
        return _not_constant(weight, document)
    if any(entry.op == "DequantizeLinear" for entry in constants.chain(weight)):
        return "quantised weights (stored as integers behind DequantizeLinear)"
    try:
        data_type = constants.data_type(weight)
        if data_type is None:
            constants.value(weight)
        else:
            constants.shape(weight)
    except CannotEvaluate as error:
        return f"its weight is computed in a way that cannot be followed ({error})"
    if data_type is not None and data_type not in FLOATS:
        return f"its weights are of type {type_name(data_type)}, not floating point"
    return None


def _not_constant(weight: str, document: Document) -> str:
    if weight in document.sparse:
        return "its weight is stored sparse"
    if weight in {value.name for value in real_inputs(document)}:
        return f"its weight is an input of the model ({weight}), not a constant"
    return "its weight is computed at runtime: it is not a constant"


def origin(name: str, constants: Constants) -> str:
    """The stored constant from which a weight is computed, followed along first inputs."""
    while name in constants.computed and constants.producers[name].proto.input:
        name = constants.producers[name].proto.input[0]
    return name


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer: the names of its matrix and of its data, and its geometry.

    ``transposed`` means that the file holds the matrix as ``(out, in)``. ``skip`` is the reason
    why the layer does not multiply the last axis of its data, as a plain linear layer does.
    """

    weight: str
    data: str
    transposed: bool
    geometry: Geometry
    skip: str | None


def read_linear(entry: Entry, constants: Constants, inferred: InferredShapes) -> Linear | None:
    """A Gemm or MatMul as a linear layer; None unless exactly one factor is a constant matrix."""
    inputs = entry.proto.input
    if len(inputs) < 2 or (inputs[0] in constants) == (inputs[1] in constants):
        return None
    at = 1 if inputs[1] in constants else 0
    weight, data = inputs[at], inputs[1 - at]
    try:
        dims = constants.shape(weight)
    except CannotEvaluate:
        dims = inferred.complete(weight) or ()
    if len(dims) != 2:
        return None
    raw = attributes_of(entry) if entry.op == "Gemm" else {}
    flags = bool(raw.get("transA", 0)), bool(raw.get("transB", 0))
    # the rows and columns of the matrix as a factor of the product
    rows, columns = dims[::-1] if flags[at] else dims
    fan_in, fan_out = (rows, columns) if at == 1 else (columns, rows)
    shape = inferred.shapes.get(data)
    batch, positions = _positions(shape, at, flags[1 - at])
    data_type = constants.data_type(weight) or inferred.types.get(weight)
    geometry = Geometry(
        in_channels=fan_in,
        out_channels=fan_out,
        kernel=(),
        stride=(),
        dilation=(),
        groups=1,
        bias=len(inputs) > 2 and bool(inputs[2]),
        input_size=positions,
        output_size=positions,
        batch=batch,
        itemsize=itemsize(data_type),
    )
    skip = weight_skip(weight, constants) or _not_plain(entry, at, flags, constants, fan_out)
    return Linear(weight, data, flags[1] if at == 1 else not flags[0], geometry, skip)


def _positions(
    shape: Shape | None, weight_at: int, transposed: bool
) -> tuple[int, tuple[int, ...] | None]:
    """The batch, and the other axes of the data that are not contracted; None if one is free."""
    if not shape:
        return 1, None
    contracted = len(shape) - 1 if weight_at == 1 else max(len(shape) - 2, 0)
    if transposed:
        contracted = 1 - contracted
    rest = [size for axis, size in enumerate(shape) if axis != contracted]
    if None in rest[1:]:
        return rest[0] or 1, None
    return (rest[0] or 1) if rest else 1, tuple(size for size in rest[1:] if size is not None)


def _not_plain(
    entry: Entry, at: int, flags: tuple[bool, bool], constants: Constants, fan_out: int
) -> str | None:
    if at == 0:
        return f"{entry.op} with its constant matrix on the left"
    if flags[0]:
        return "Gemm that transposes its input"
    bias = entry.proto.input[2] if len(entry.proto.input) > 2 else ""
    if not bias:
        return None
    if bias not in constants:
        return "Gemm whose bias is computed at runtime"
    try:
        shape = constants.shape(bias)
    except CannotEvaluate as error:
        return f"Gemm whose bias cannot be followed ({error})"
    if shape not in ((), (1,), (1, 1), (fan_out,), (1, fan_out)):
        return f"Gemm whose bias has the shape {list(shape)}"
    return None


def linear_conv(entry: Entry, constants: Constants, linear: Linear) -> Conv:
    """The layer as a conv without spatial axes, with alpha and beta folded into its weights."""
    raw = attributes_of(entry) if entry.op == "Gemm" else {}
    stored = constants.value(linear.weight)
    weight = _scaled(stored if linear.transposed else stored.T, raw.get("alpha", 1.0))
    bias: Array | None = None
    if linear.geometry.bias:
        values = constants.value(entry.proto.input[2]).reshape(-1)
        bias = np.broadcast_to(values, (linear.geometry.out_channels,))
        bias = _scaled(bias, raw.get("beta", 1.0))
    return Conv(weight, bias, (), (), ())


def _scaled(values: Array, factor: float) -> Array:
    return values if factor == 1.0 else (values.astype(np.float64) * factor).astype(values.dtype)


def read_conv(entry: Entry, facts: GraphFacts) -> Conv:
    """The layer at a Conv, ConvTranspose, Gemm or MatMul; see :class:`dacconv.graph.types.Conv`.

    Raises:
        CannotEvaluate: the node is none of these, or its weight cannot be read.
    """
    if entry.op in ("Gemm", "MatMul"):
        linear = read_linear(entry, facts.constants, facts.inferred)
        if linear is None or linear.skip:
            raise CannotEvaluate(linear.skip if linear and linear.skip else "no constant matrix")
        return linear_conv(entry, facts.constants, linear)
    if entry.op not in ("Conv", "ConvTranspose"):
        raise CannotEvaluate(f"a {entry.op}, not a convolution")
    transposed = entry.op == "ConvTranspose"
    names = entry.proto.input
    weight = facts.constants.value(names[1])
    raw = attributes_of(entry)
    if transposed:
        if "output_shape" in raw:
            raise CannotEvaluate("it states its output_shape instead of its padding")
        weight = swap_channels(weight, max(int(raw.get("group", 1)), 1))
    axes = weight.ndim - 2
    same = str(raw.get("auto_pad", "")).startswith("SAME") and not transposed
    data = facts.inferred.shapes.get(names[0]) if same else None
    attributes = conv_attributes(entry, weight.shape, spatial(data, axes))
    if attributes.problem:
        raise CannotEvaluate(attributes.problem)
    extra = raw.get("output_padding", (0,) * axes) if transposed else ()
    return Conv(
        weight=weight,
        bias=facts.constants.value(names[2]) if len(names) > 2 and names[2] else None,
        stride=attributes.stride,
        padding=attributes.padding,
        dilation=attributes.dilation,
        groups=attributes.groups,
        auto_pad=attributes.auto_pad,
        transposed=transposed,
        output_padding=tuple(int(each) for each in extra),
    )
