"""A model on inputs of other sizes, also where its file fixes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onnx import GraphProto, TensorShapeProto, ValueInfoProto

from dacconv.formats.onnx.inputs import real_inputs
from dacconv.formats.onnx.model import OnnxModel


def resize(model: OnnxModel, shapes: Mapping[str, tuple[int, ...]]) -> OnnxModel:
    """The model whose inputs have ``shapes``, by name; nothing is written.

    The sizes of other values are forgotten and inferred again. A size that is a constant of the
    graph, such as that of a Reshape, stays: whether the model still runs shows when it is run.
    """
    document = model.document
    real = {value.name for value in real_inputs(document)}
    rest = GraphProto()
    rest.CopyFrom(document.rest)
    del rest.value_info[:]
    for value in rest.input:
        if value.name in real & shapes.keys():
            _set_shape(value, shapes[value.name])
    for value in rest.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return replace(
        model,
        document=replace(document, rest=rest),
        options=replace(model.options, input_shapes=dict(shapes)),
    )


def _set_shape(value: ValueInfoProto, shape: tuple[int, ...]) -> None:
    dims = [TensorShapeProto.Dimension(dim_value=size) for size in shape]
    value.type.tensor_type.shape.CopyFrom(TensorShapeProto(dim=dims))
