"""BatchNormalization at inference, and arithmetic with constants that is affine per channel."""

from __future__ import annotations

import numpy as np

from dacconv.formats.onnx.constants import Constants
from dacconv.formats.onnx.document import Entry
from dacconv.formats.onnx.geometry import attributes_of
from dacconv.formats.onnx.operators import CannotEvaluate
from dacconv.formats.onnx.shapes import InferredShapes
from dacconv.formats.onnx.tensors import FLOATS
from dacconv.graph.convs import as_f64
from dacconv.graph.types import Affine, Array, Shape


def batch_norm_skip(entry: Entry, constants: Constants) -> str | None:
    """The reason why a BatchNormalization is not a fixed affine map; None if it is."""
    attributes = attributes_of(entry)
    if attributes.get("training_mode", 0):
        return "BatchNormalization in training mode: it uses the statistics of its input"
    if len(entry.writes) > 1:
        return "BatchNormalization in training mode: its statistics are outputs"
    if not attributes.get("spatial", 1):
        return "BatchNormalization with spatial=0: its statistics are per position"
    if len(entry.proto.input) != 5 or not all(n in constants for n in entry.proto.input[1:]):
        return "BatchNormalization whose parameters are computed at runtime"
    try:
        shapes = {constants.shape(name) for name in entry.proto.input[1:]}
    except CannotEvaluate as error:
        return f"BatchNormalization whose parameters cannot be followed ({error})"
    if len(shapes) > 1 or len(next(iter(shapes))) != 1:
        return "BatchNormalization whose parameters are not one per channel"
    return None


def loose_affine_axis(entry: Entry, constants: Constants, inferred: InferredShapes) -> int | None:
    """The channel axis along which a Mul, Add, Sub, Div or Neg is affine (1 for a scalar).

    None if it is not affine: it has no floating-point constant, the constant varies along more
    than one axis or changes the shape of the value, or it is divided by the value.
    """
    operands = _operands(entry, constants)
    if operands is None:
        return None
    data, constant = operands
    if constant is None:
        return 1 if inferred.types.get(data) in FLOATS else None
    try:
        data_type = constants.data_type(constant)
        if data_type is not None and data_type not in FLOATS:
            return None
        axis = _axis(constants.shape(constant), inferred.shapes.get(data))
        values = constants.value(constant) if data_type is None or entry.op == "Div" else None
    except CannotEvaluate:
        return None
    if values is not None and (values.dtype.kind not in "fV" or not _divides(entry, values)):
        return None
    return axis


def _operands(entry: Entry, constants: Constants) -> tuple[str, str | None] | None:
    """The name of the input that is no constant, and of the constant; Neg has none."""
    names = list(entry.proto.input)
    if entry.op == "Neg" and len(names) == 1:
        return names[0], None
    if entry.op not in ("Mul", "Add", "Sub", "Div") or len(names) != 2:
        return None
    first, second = names
    if (first in constants) == (second in constants) or (entry.op == "Div" and first in constants):
        return None
    return (second, first) if first in constants else (first, second)


def _divides(entry: Entry, values: Array) -> bool:
    return entry.op != "Div" or bool(np.all(values.astype(np.float64) != 0))


def _axis(constant: tuple[int, ...], data: Shape | None) -> int | None:
    """The axis of the data along which the constant varies; 1 for a single value."""
    if data is None:
        return 1 if constant == () else None
    if len(constant) > len(data):
        return None
    aligned = (1,) * (len(data) - len(constant)) + constant
    wide = [axis for axis, size in enumerate(aligned) if size != 1]
    if not wide:
        return 1
    return wide[0] if len(wide) == 1 and data[wide[0]] == aligned[wide[0]] else None


def batch_norm(entry: Entry, constants: Constants) -> Affine:
    """``gamma (x - mean) / sqrt(var + epsilon) + beta`` as scale and shift, in float64."""
    scale, shift, mean, variance = (
        as_f64(constants.value(name)) for name in entry.proto.input[1:5]
    )
    epsilon = float(attributes_of(entry).get("epsilon", 1e-5))
    with np.errstate(all="ignore"):  # a negative variance gives NaN here as it does at runtime
        factor = scale / np.sqrt(variance + epsilon)
        return Affine(factor, shift - mean * factor)


def loose_affine(entry: Entry, constants: Constants) -> Affine:
    """The scale and shift of a node for which ``loose_affine_axis`` gave an axis."""
    operands = _operands(entry, constants)
    data, constant = operands if operands is not None else ("", None)
    if constant is None:
        return Affine(-np.ones(()), np.zeros(()))
    values = as_f64(constants.value(constant))
    values = values.reshape(() if values.size == 1 else -1)
    ones, zeros = np.ones_like(values), np.zeros_like(values)
    reversed_order = entry.proto.input[1] == data
    match entry.op:
        case "Mul":
            return Affine(values, zeros)
        case "Div":
            return Affine(1 / values, zeros)
        case "Sub":
            return Affine(-ones, values) if reversed_order else Affine(ones, -values)
        case _:
            return Affine(ones, values)
