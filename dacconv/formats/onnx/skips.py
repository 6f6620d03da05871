"""Why a convolution of an ONNX graph must be left alone, in words."""

from __future__ import annotations

from dacconv.formats.onnx.consts import Constants, names_of
from dacconv.formats.onnx.document import Document, Entry
from dacconv.formats.onnx.inputs import real_inputs
from dacconv.formats.onnx.operators import CannotEvaluate
from dacconv.formats.onnx.tensors import FLOATS, type_name

QUANTISED_CONVS = {"QLinearConv": 3, "ConvInteger": 1, "com.microsoft::QLinearConv": 3}
"""Operators on integer weights, and the input that is the weight."""
RUNTIME_CONVS = {
    "com.microsoft::FusedConv", "com.microsoft::NhwcFusedConv", "com.microsoft::NhwcConv",
    "com.microsoft.nchwc::Conv", "com.ms.internal.nhwc::Conv",
}  # fmt: skip
"""What ONNX Runtime writes when it saves the graph that it has optimised for itself."""


def conv_skip(entry: Entry, constants: Constants) -> str | None:
    """Why the weight or bias of a Conv or ConvTranspose cannot be replaced; None when it can."""
    weight = entry.proto.input[1] if len(entry.proto.input) > 1 else ""
    reason = weight_skip(weight, constants)
    if reason:
        return reason
    bias = entry.proto.input[2] if len(entry.proto.input) > 2 else ""
    if bias and bias not in constants:
        return "its bias is computed at runtime: it is not a constant"
    source = origin(weight, constants)
    others = [
        user
        for user in constants.users(source)
        if not (user.op == entry.op and origin(user.proto.input[1], constants) == source)
    ]
    if others:
        return f"its weight is also read by {names_of(others)}"
    return None


def weight_skip(weight: str, constants: Constants) -> str | None:
    """Why a weight cannot be read as floating-point numbers; None when it can."""
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
    """The stored constant at the beginning of a weight's chain, by way of first inputs."""
    while name in constants.chained and constants.makers[name].proto.input:
        name = constants.makers[name].proto.input[0]
    return name


def quantised(entry: Entry, constants: Constants) -> bool:
    """Whether a node is a convolution on integer weights."""
    if entry.op in QUANTISED_CONVS:
        return True
    if entry.op != "Conv" or len(entry.proto.input) < 2:
        return False
    weight = entry.proto.input[1]
    return weight in constants and any(
        node.op == "DequantizeLinear" for node in constants.chain(weight)
    )
