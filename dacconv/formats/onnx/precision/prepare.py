"""A model made ready for ONNX Runtime's quantiser, and which of its nodes can be int8.

The quantiser takes weights for activations unless they are initializers, renames the readers of a
quantised weight whoever they are, and knows nodes by name. So here every layer gets initializers
of its own, and every node a unique name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, shape_inference, version_converter

from dacconv.errors import UnsupportedError
from dacconv.formats.onnx.constants import Constants
from dacconv.formats.onnx.document import DEFAULT_DOMAINS, Document, Entry, pieces, unique
from dacconv.formats.onnx.document import value_names as names_of_values
from dacconv.formats.onnx.layers import QUANTISED_CONVS, conv_skip, read_linear
from dacconv.formats.onnx.operators import CannotEvaluate
from dacconv.formats.onnx.save import INLINE_LIMIT, inline_size
from dacconv.formats.onnx.shapes import InferredShapes
from dacconv.formats.onnx.tensors import from_array, type_name

OLDEST_OPSET, OLDEST_IR = 13, 7
"""DequantizeLinear has a scale for each channel from opset 13 on, which is of IR version 7."""
LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
"""The layers that ONNX Runtime has int8 kernels of on CPUs."""
CARRIERS = frozenset({
    "Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul",
    "Pad", "Relu", "Resize", "Slice", "Split", "Transpose",
})  # fmt: skip
"""Operators that are int8 where they lie between int8 layers.

Reshape and its like are not among them: ONNX Runtime folds these wrongly around int8 values
(microsoft/onnxruntime#28491, #27845), and in fp32 they cost nothing."""
QUANTISED = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", *QUANTISED_CONVS,
    "QLinearMatMul", "MatMulInteger", "com.microsoft::QuantizeLinear",
    "com.microsoft::DequantizeLinear",
})  # fmt: skip
"""Operators of models that are quantised already."""
ACTIVATIONS = frozenset({"Relu", "Clip"})
"""Operators that become part of the layer before them."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A model that the quantiser can read.

    ``reasons`` maps every layer node that must stay in floating point to the reason. ``notes``
    are for the reader of a report.
    """

    proto: ModelProto
    layers: frozenset[str]
    reasons: Mapping[str, str]
    notes: tuple[str, ...]

    def int8_nodes(self, kept: Iterable[str]) -> list[str]:
        """The names of the nodes to quantise if the layers ``kept`` stay in fp32."""
        return _between(self.proto, self.layers - frozenset(kept))


def prepared(document: Document, constants: Constants, inferred: InferredShapes) -> Prepared:
    """The model with unique names, layers with initializers of their own, and opset 13 or newer.

    Raises:
        UnsupportedError: the model is too large, or cannot be brought to opset 13.
    """
    if inline_size(document) > INLINE_LIMIT:
        raise UnsupportedError("int8 of a model of more than 2 GB is not supported")
    done = sorted({entry.op for entry in document.entries if entry.op in QUANTISED})
    if done:
        raise UnsupportedError(
            f"it is quantised already, at least in part ({', '.join(done)})",
            hint="convert the floating-point model that it was made from",
        )
    proto = ModelProto.FromString(b"".join(pieces(document)))
    reasons = dict(_reasons(document, constants, inferred))
    for node, entry in zip(proto.graph.node, document.entries, strict=True):
        node.name = entry.name
    layers = {e.name for e in document.entries if e.op in LAYERS and e.name not in reasons}
    layers -= {e.name for e in document.entries if _is_product(e, constants)}
    _own_initializers(proto, document, constants, layers)
    _keep_inputs(proto)
    notes = []
    if document.opset < OLDEST_OPSET:
        proto = _upgraded(proto, document.opset)
        notes.append(f"opset {document.opset} was brought to {OLDEST_OPSET}, which int8 needs")
    proto.ir_version = max(proto.ir_version, OLDEST_IR)
    try:
        proto = shape_inference.infer_shapes(proto)
    except Exception as error:  # onnx's C++ raises several kinds
        raise UnsupportedError(f"the types of its values are not known: {error}") from error
    return Prepared(proto, frozenset(layers), reasons, tuple(notes))


def _reasons(
    document: Document, constants: Constants, inferred: InferredShapes
) -> Iterable[tuple[str, str]]:
    """Every layer that must stay in floating point, and the reason."""
    for entry in document.entries:
        if entry.op == "ConvTranspose":
            yield entry.name, "ONNX Runtime has no int8 transposed convolution on CPUs"
        if entry.op not in LAYERS or _is_product(entry, constants):
            continue
        reason = None
        if entry.op == "Conv":
            reason = conv_skip(entry, constants)
            if reason and "also read by" in reason:  # it gets a copy of its own
                reason = None
        elif linear := read_linear(entry, constants, inferred):
            reason = linear.skip
        if reason := reason or _weight_reason(entry.proto, constants):
            yield entry.name, reason


def _is_product(entry: Entry, constants: Constants) -> bool:
    """Whether a Gemm or MatMul multiplies two values that the model computes."""
    names = entry.proto.input[:2]
    return entry.op in ("Gemm", "MatMul") and not any(name in constants for name in names)


def _weight_reason(node: NodeProto, constants: Constants) -> str | None:
    """The reason why a weight or bias cannot be quantised; None if it can."""
    for name in node.input[1:3]:
        if not name:
            continue
        try:
            values = constants.value(name)
        except CannotEvaluate as error:
            return f"its weight cannot be followed ({error})"
        if values.dtype != np.float32:
            kind = type_name(constants.data_type(name) or 0)
            return f"its weights are of type {kind}; only float32 is quantised"
        if not np.isfinite(values).all():
            return "its weights are NaN or infinite"
        if not values.size:
            return "its weight is empty"
    return None


def _own_initializers(
    proto: ModelProto, document: Document, constants: Constants, layers: set[str]
) -> None:
    """Give the layers initializers that no node of another kind reads.

    The factors of a Gemm are multiplied into them: ONNX Runtime's int8 kernel mistakes these.
    """
    taken = names_of_values(document)
    copies: dict[tuple[str, ...], str] = {}
    nodes = {node.name: node for node in proto.graph.node}
    for name in (entry.name for entry in document.entries if entry.name in layers):
        node = nodes[name]
        channels = constants.shape(node.input[1])[0 if _transposed(node) else -1]
        factors = _factors(node)
        for at, factor in enumerate(factors, 1):
            value = node.input[at] if len(node.input) > at else ""
            if not value:
                continue
            vector = at == 1 or node.op_type != "Gemm" or constants.shape(value) == (channels,)
            if factor == 1 and vector and _is_own(value, at, node, layers, constants):
                continue
            # the sites of one weight share a copy; a bias is scaled as its own layer's input is
            kind = (node.op_type, str(_transposed(node)), str(factor)) if at == 1 else (name,)
            key = (constants.identity(value), *kind)
            if key not in copies:
                copies[key] = unique(f"{value}_{name}" if at == 2 else f"{value}_int8", taken)
                array = constants.value(value)
                if not vector:
                    array = np.broadcast_to(array.reshape(-1), (channels,))
                if factor != 1:
                    array = (array.astype(np.float64) * factor).astype(np.float32)
                proto.graph.initializer.append(from_array(copies[key], array).proto())
            node.input[at] = copies[key]
        if factors != (1, 1):
            rest = [a for a in node.attribute if a.name not in ("alpha", "beta")]
            del node.attribute[:]
            node.attribute.extend(rest)


def _is_own(value: str, at: int, node: NodeProto, layers: set[str], constants: Constants) -> bool:
    """Whether an input is an initializer that only layers of the same kind read, as their weight.

    A bias must have one reader.
    """
    if value not in constants.document.tensors:
        return False
    users = constants.users(value)
    if any(list(user.proto.input).count(value) != 1 for user in users):
        return False
    return len(users) == 1 or (at == 1 and all(
        user.name in layers
        and user.op == node.op_type
        and list(user.proto.input).index(value) == 1
        and (_transposed(user.proto), _factors(user.proto)) == (_transposed(node), (1, 1))
        for user in users
    ))  # fmt: skip


def _factors(node: NodeProto) -> tuple[float, float]:
    """What a Gemm multiplies its product and its bias with."""
    attributes = {a.name: a.f for a in node.attribute}
    if node.op_type != "Gemm":
        return 1.0, 1.0
    return attributes.get("alpha", 1.0), attributes.get("beta", 1.0)


def _transposed(node: NodeProto) -> bool:
    return any(a.name == "transB" and a.i for a in node.attribute)


def _keep_inputs(proto: ModelProto) -> None:
    """Leave among the inputs only those that a caller must feed."""
    fixed = {tensor.name for tensor in proto.graph.initializer}
    fixed |= {tensor.values.name for tensor in proto.graph.sparse_initializer}
    inputs = [value for value in proto.graph.input if value.name not in fixed]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)


def _upgraded(proto: ModelProto, opset: int) -> ModelProto:
    proto.ir_version = max(proto.ir_version, 4)
    try:
        upgraded: ModelProto = version_converter.convert_version(proto, OLDEST_OPSET)
    except Exception as error:  # onnx's C++ raises several kinds
        message = " ".join(str(error).split())[:200]
        raise UnsupportedError(
            f"int8 needs opset {OLDEST_OPSET}; the model has {opset}, and onnx cannot bring it "
            f"there: {message}",
            hint="export the model again with a newer opset",
        ) from error
    return upgraded


def _between(proto: ModelProto, layers: frozenset[str]) -> list[str]:
    """The layers, and the nodes on the paths between them that have int8 kernels."""
    nodes = proto.graph.node
    constants = {tensor.name for tensor in proto.graph.initializer}
    before: set[str] = set()
    after_layer: set[str] = set()
    candidates: list[NodeProto] = []
    for node in nodes:
        if node.name in layers:
            before.update(node.output)
            after_layer.update(node.output)
        elif _carries(node, before, constants):
            before.update(node.output)
            candidates.append(node)
    ahead: set[str] = {node.input[0] for node in nodes if node.name in layers}
    chosen = set(layers)
    for node in reversed(candidates):
        is_activation = node.op_type in ACTIVATIONS and node.input[0] in after_layer
        if any(value in ahead for value in node.output):
            chosen.add(node.name)
            ahead.update(_data(node, constants))
        elif is_activation:
            chosen.add(node.name)
    return [node.name for node in nodes if node.name in chosen]


def _carries(node: NodeProto, before: set[str], constants: set[str]) -> bool:
    """Whether a node can be int8, and all that it reads comes from int8 layers."""
    if node.op_type not in CARRIERS or node.domain not in DEFAULT_DOMAINS:
        return False
    if node.op_type == "Pad" and any(
        a.name == "mode" and a.s != b"constant" for a in node.attribute
    ):
        return False
    if node.op_type == "Resize" and any(
        a.name == "mode" and a.s == b"cubic" for a in node.attribute
    ):
        return False
    data = _data(node, constants)
    return bool(data) and all(value in before for value in data)


def _data(node: NodeProto, constants: set[str]) -> list[str]:
    """The inputs of a node that hold data, not sizes or limits."""
    if node.op_type in ("Add", "Mul", "Concat"):
        return [name for name in node.input if name]
    return [node.input[0]]
