"""Gemm and MatMul with a constant matrix: linear layers, and what is only nearly one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dacconv.formats.onnx.consts import Constants
from dacconv.formats.onnx.document import Entry
from dacconv.formats.onnx.geometry import attributes_of, itemsize
from dacconv.formats.onnx.operators import CannotEvaluate
from dacconv.formats.onnx.shapes import Inferred
from dacconv.formats.onnx.skips import weight_skip
from dacconv.graph.types import Array, Conv, Geometry, Shape


@dataclass(frozen=True, slots=True)
class Linear:
    """Which input is the matrix, and how it is stored.

    ``transposed`` is true where the matrix is ``(out, in)`` as it stands in the file. ``skip``
    says why it does not act on the last axis of its data as a plain linear layer does.
    """

    weight: str
    data: str
    transposed: bool
    geometry: Geometry
    skip: str | None


def read_linear(entry: Entry, constants: Constants, inferred: Inferred) -> Linear | None:
    """A Gemm or MatMul as a linear layer; None where neither factor is a constant matrix."""
    inputs = entry.proto.input
    if len(inputs) < 2 or (inputs[0] in constants) == (inputs[1] in constants):
        return None
    at = 1 if inputs[1] in constants else 0
    weight, data = inputs[at], inputs[1 - at]
    try:
        dims = constants.shape(weight)
    except CannotEvaluate:
        dims = inferred.known(weight) or ()
    if len(dims) != 2:
        return None
    given = attributes_of(entry) if entry.op == "Gemm" else {}
    flags = bool(given.get("transA", 0)), bool(given.get("transB", 0))
    # as (rows, columns) of the factor that it is in the product
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
    """Batch and the other axes of the data that are not contracted, None where one is free."""
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
    """The layer as a conv without spatial axes, alpha and beta folded into it."""
    given = attributes_of(entry) if entry.op == "Gemm" else {}
    stored = constants.value(linear.weight)
    weight = _scaled(stored if linear.transposed else stored.T, given.get("alpha", 1.0))
    bias: Array | None = None
    if linear.geometry.bias:
        values = constants.value(entry.proto.input[2]).reshape(-1)
        bias = np.broadcast_to(values, (linear.geometry.out_channels,))
        bias = _scaled(bias, given.get("beta", 1.0))
    return Conv(weight, bias, (), (), ())


def _scaled(values: Array, factor: float) -> Array:
    return values if factor == 1.0 else (values.astype(np.float64) * factor).astype(values.dtype)
