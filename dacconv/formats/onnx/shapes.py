"""The shape of every value, inferred on a copy of the model without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorShapeProto, ValueInfoProto, helper

from dacconv.formats.onnx.constants import Constants
from dacconv.formats.onnx.document import Document
from dacconv.formats.onnx.inputs import declared_shape
from dacconv.formats.onnx.tensors import from_array, value_info
from dacconv.graph.types import Array, Shape, ValueSpec

_ROUNDS = 64  # a network that pads by sizes of its own needs one for each conv
_GENERATORS = frozenset({"ConstantOfShape", "Expand", "Range", "Tile"})
_LONGEST_VECTOR = 1 << 20
_STAND_IN = 64  # smaller constants are embedded: shapes may depend on their values


@dataclass(frozen=True, slots=True)
class InferredShapes:
    """Shapes and ONNX element types by value; a value of unknown rank is missing."""

    shapes: dict[str, Shape]
    types: dict[str, int]

    def complete(self, name: str) -> tuple[int, ...] | None:
        """The shape when every axis is known."""
        shape = self.shapes.get(name)
        return None if shape is None or None in shape else tuple(s for s in shape if s is not None)


def infer(
    document: Document, constants: Constants, inputs: tuple[ValueSpec, ...]
) -> InferredShapes:
    """Infer shapes from the inputs' shapes; a shape that cannot be inferred is missing.

    Shape arithmetic that onnx's own data propagation does not follow (slices, pads and
    reshapes computed from a Shape) is evaluated here, and inference is repeated with the results
    until there are no new ones. The shapes that the file itself states fill the gaps.
    """
    derived: dict[str, Array] = {}
    hints: dict[str, ValueInfoProto] = {}
    inferred = InferredShapes({}, {})
    for _ in range(_ROUNDS):
        small = constants.small(derived)
        model = _stand_in(document, small, inputs, hints)
        inferred = _infer(model, inferred)
        for name, value in small.items():
            inferred.shapes.setdefault(name, value.shape)
        shapes = {
            entry.writes[0]: inferred.complete(entry.reads[0])
            for entry in document.entries
            if entry.op == "Shape" and entry.reads and entry.writes
        }
        new_values = {
            name: _shape_value(constants, name, shape)
            for name, shape in shapes.items()
            if shape is not None and name not in derived and name not in small
        }
        if new_values:
            derived |= new_values
            continue
        new_hints = _hints(document, inferred)
        if not new_hints or new_hints.keys() <= hints.keys():
            break
        hints |= new_hints
    return inferred


def _shape_value(constants: Constants, name: str, shape: tuple[int, ...]) -> Array:
    attributes = {a.name: int(a.i) for a in constants.producers[name].proto.attribute}
    return np.asarray(shape[attributes.get("start", 0) : attributes.get("end")], np.int64)


def _hints(document: Document, inferred: InferredShapes) -> dict[str, ValueInfoProto]:
    """The complete shapes that the file states for values whose shape was not inferred."""
    return {
        value.name: value
        for value in document.rest.value_info
        if value.name not in inferred.shapes
        and (shape := declared_shape(value)) is not None
        and None not in shape
    }


def _stand_in(
    document: Document,
    small: Mapping[str, Array],
    inputs: tuple[ValueSpec, ...],
    hints: Mapping[str, ValueInfoProto],
) -> ModelProto:
    """The model without weights: large constants are typed inputs, small ones initializers."""
    graph = GraphProto(name="stand_in")
    sizes = {spec.name: spec.shape for spec in inputs}
    graph.input.extend(
        _with_shape(value, sizes[value.name])
        for value in document.rest.input
        if value.name in sizes
    )
    for name, tensor in document.tensors.items():
        if name in small and tensor.size <= _STAND_IN:
            graph.initializer.append(tensor.proto())
        else:
            graph.input.append(value_info(tensor))
    for sparse in document.rest.sparse_initializer:
        graph.input.append(
            helper.make_tensor_value_info(sparse.values.name, sparse.values.data_type, sparse.dims)
        )
    for entry in document.entries:
        output = entry.writes[0] if entry.writes else ""
        if output in small and len(entry.writes) == 1:
            tensor = from_array(output, small[output])
            if tensor.size <= _STAND_IN:
                graph.initializer.append(tensor.proto())
            else:
                graph.input.append(value_info(tensor))
        elif entry.op == "Constant" and any(a.name == "value" for a in entry.proto.attribute):
            (tensor_proto,) = (a.t for a in entry.proto.attribute if a.name == "value")
            graph.input.append(
                helper.make_tensor_value_info(output, tensor_proto.data_type, tensor_proto.dims)
            )
        else:
            graph.node.append(entry.proto)
    graph.output.extend(_with_shape(value, None) for value in document.rest.output)
    graph.value_info.extend(hints.values())
    model = ModelProto(ir_version=max(int(document.header.ir_version), 4), graph=graph)
    model.opset_import.extend(document.header.opset_import)
    model.functions.extend(document.header.functions)
    return model


def _with_shape(value: ValueInfoProto, shape: Shape | None) -> ValueInfoProto:
    copy = ValueInfoProto()
    copy.CopyFrom(value)
    if copy.type.HasField("tensor_type"):
        copy.type.tensor_type.ClearField("shape")
        if shape is not None:
            dims = [TensorShapeProto.Dimension(dim_value=size) for size in shape]
            copy.type.tensor_type.shape.CopyFrom(TensorShapeProto(dim=dims))
    return copy


def _infer(model: ModelProto, before: InferredShapes) -> InferredShapes:
    """One pass of onnx's inference, with data propagation where that is safe and works."""
    plain: InferredShapes | None = None
    if any(node.op_type in _GENERATORS for node in model.graph.node) or _has_long_vector(
        _declared(model)
    ):
        plain = _one_pass(model, propagate=False)
        if plain is None or _has_long_vector(plain):
            return plain or before
    inferred = _one_pass(model, propagate=True) or plain or _one_pass(model, propagate=False)
    return inferred or (before if before.shapes else _declared(model))


def _one_pass(model: ModelProto, *, propagate: bool) -> InferredShapes | None:
    """What onnx infers; None where its C++ code raises an error of any kind."""
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=propagate).graph
    except Exception:
        return None
    shapes: dict[str, Shape] = {}
    types: dict[str, int] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape = declared_shape(value)
        types[value.name] = int(value.type.tensor_type.elem_type)
        if shape is not None:
            shapes[value.name] = shape
    return InferredShapes(shapes, types)


def _has_long_vector(inferred: InferredShapes) -> bool:
    """Whether data propagation could fill the memory.

    For a vector, onnx makes an object of some 60 bytes for each element, without a limit.
    """
    vectors = (shape for shape in inferred.shapes.values() if len(shape) == 1)
    return any(shape[0] is not None and shape[0] > _LONGEST_VECTOR for shape in vectors)


def _declared(model: ModelProto) -> InferredShapes:
    """The shapes that the model states, for one that onnx cannot infer shapes of."""
    values = [*model.graph.input, *model.graph.value_info]
    return InferredShapes(
        {value.name: shape for value in values if (shape := declared_shape(value)) is not None},
        {value.name: int(value.type.tensor_type.elem_type) for value in values},
    )
