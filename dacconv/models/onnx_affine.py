"""BatchNormalization at inference, and loose arithmetic that does the same."""

from __future__ import annotations

import numpy as np

from dacconv.models.onnx_consts import Constants
from dacconv.models.onnx_document import Entry
from dacconv.models.onnx_geometry import attributes_of
from dacconv.models.onnx_operators import CannotEvaluate
from dacconv.models.onnx_shapes import Inferred
from dacconv.models.onnx_tensors import FLOATS
from dacconv.types import Affine, FloatArray

LOOSE = frozenset({"Mul", "Add", "Sub", "Div"})


def batch_norm_skip(entry: Entry, constants: Constants) -> str | None:
    """Why a BatchNormalization is not a fixed affine map; None when it is."""
    given = attributes_of(entry)
    if given.get("training_mode", 0):
        return "BatchNormalization in training mode: it uses the statistics of its input"
    if len(entry.writes) > 1:
        return "BatchNormalization in training mode: it also puts out its statistics"
    if not given.get("spatial", 1):
        return "BatchNormalization with spatial=0: its statistics are per position"
    if len(entry.proto.input) != 5 or not all(n in constants for n in entry.proto.input[1:]):
        return "BatchNormalization whose parameters are computed at runtime"
    return None


def loose_operands(
    entry: Entry, constants: Constants, inferred: Inferred
) -> tuple[str, str] | None:
    """The runtime value and the constant of a Mul, Add, Sub or Div that is affine per channel.

    None when it is not: no floating-point constant, one that varies along another axis than
    1, one that changes the value's shape, or a constant divided by the value.
    """
    if entry.op not in LOOSE or len(entry.proto.input) != 2:
        return None
    first, second = entry.proto.input
    if (first in constants) == (second in constants):
        return None
    data, constant = (second, first) if first in constants else (first, second)
    if entry.op == "Div" and constant == first:
        return None
    try:
        data_type = constants.data_type(constant)
        if data_type is not None and data_type not in FLOATS:
            return None
        if not _per_channel(constants.shape(constant), inferred.shapes.get(data)):
            return None
        values = constants.value(constant) if data_type is None or entry.op == "Div" else None
    except CannotEvaluate:
        return None
    if values is not None and (values.dtype.kind not in "fV" or not _divides(entry, values)):
        return None
    return data, constant


def _divides(entry: Entry, values: FloatArray) -> bool:
    return entry.op != "Div" or bool(np.all(values.astype(np.float64) != 0))


def _per_channel(constant: tuple[int, ...], data: tuple[int | None, ...] | None) -> bool:
    if data is None:
        return constant == ()
    if len(constant) > len(data):
        return False
    aligned = (1,) * (len(data) - len(constant)) + constant
    return all(size == 1 or (axis == 1 and size == data[1]) for axis, size in enumerate(aligned))


def batch_norm(entry: Entry, constants: Constants) -> Affine:
    """``gamma (x - mean) / sqrt(var + epsilon) + beta`` as scale and shift, in float64."""
    scale, shift, mean, variance = (
        constants.value(name).astype(np.float64) for name in entry.proto.input[1:5]
    )
    epsilon = float(attributes_of(entry).get("epsilon", 1e-5))
    factor = scale / np.sqrt(variance + epsilon)
    return Affine(factor, shift - mean * factor)


def loose_affine(entry: Entry, constants: Constants, operands: tuple[str, str]) -> Affine:
    """The scale and shift of a node for which ``loose_operands`` gave ``operands``."""
    data, constant = operands
    values = constants.value(constant).astype(np.float64)
    values = values.reshape(() if values.size == 1 else -1)
    one, zero = np.ones_like(values), np.zeros_like(values)
    reversed_order = entry.proto.input[1] == data
    match entry.op:
        case "Mul":
            return Affine(values, zero)
        case "Div":
            return Affine(1 / values, zero)
        case "Sub":
            return Affine(-one, values) if reversed_order else Affine(one, -values)
        case _:
            return Affine(one, values)
