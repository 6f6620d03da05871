"""Constants of an ONNX model, whose values are read when they are used."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, numpy_helper

from dacconv.errors import FormatError, UnsupportedError
from dacconv.formats.onnx import wire
from dacconv.graph.types import Array

Buffer = bytes | memoryview

_DATA_FIELDS = frozenset({4, 5, 6, 7, 9, 10, 11})
_RAW_DATA = 9
_DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "<f4",
    TensorProto.UINT8: "u1",
    TensorProto.INT8: "i1",
    TensorProto.UINT16: "<u2",
    TensorProto.INT16: "<i2",
    TensorProto.INT32: "<i4",
    TensorProto.INT64: "<i8",
    TensorProto.BOOL: "?",
    TensorProto.FLOAT16: "<f2",
    TensorProto.DOUBLE: "<f8",
    TensorProto.UINT32: "<u4",
    TensorProto.UINT64: "<u8",
    TensorProto.COMPLEX64: "<c8",
    TensorProto.COMPLEX128: "<c16",
}
FLOATS = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
)
"""The element types of weights that can be split."""


@cache
def numpy_dtype(data_type: int) -> np.dtype[np.generic] | None:
    """The numpy dtype of an ONNX element type; None if numpy has none."""
    if data_type == TensorProto.BFLOAT16:
        import ml_dtypes

        return cast("np.dtype[np.generic]", np.dtype(ml_dtypes.bfloat16))
    code = _DTYPES.get(data_type)
    return np.dtype(code) if code else None


@cache
def onnx_dtype(dtype: np.dtype[np.generic]) -> int:
    """The ONNX element type of a numpy dtype.

    Raises:
        UnsupportedError: ONNX has none.
    """
    if dtype.name == "bfloat16":
        return int(TensorProto.BFLOAT16)
    for number, code in _DTYPES.items():
        if np.dtype(code) == dtype:
            return int(number)
    raise UnsupportedError(f"ONNX has no element type for {dtype}")


def type_name(data_type: int) -> str:
    """The name of the element type, as in numpy where it has one."""
    dtype = numpy_dtype(data_type)
    if dtype is not None:
        return dtype.name
    try:
        return str(TensorProto.DataType.Name(data_type)).lower()
    except ValueError:
        return f"type {data_type}"


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A constant: its description in the file, and its bytes.

    ``head`` is the TensorProto without its data. ``raw`` are the little-endian values if
    they are stored that way, in the model file or in an external one. ``whole`` is the serialised
    TensorProto in the model file; None for external and new tensors.
    """

    head: TensorProto
    raw: Buffer | None
    whole: Buffer | None = None
    external: bool = False

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.head.name)

    @property
    def dims(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.head.dims)

    @property
    def data_type(self) -> int:
        """Its ONNX element type."""
        return int(self.head.data_type)

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.head.dims)

    @property
    def stored(self) -> int:
        """The bytes that it takes in the file."""
        return len(self.raw) if self.raw is not None else len(self.whole or b"")

    def array(self) -> Array:
        """The values; if possible as a read-only view of the file's bytes.

        Raises:
            FormatError: the data does not fit the tensor's type and shape.
        """
        dtype = numpy_dtype(self.data_type)
        if self.raw is not None and dtype is not None:
            return np.frombuffer(self.raw, dtype).reshape(self.dims)
        return proto_array(self.proto())

    def proto(self) -> TensorProto:
        """The whole TensorProto, a copy, its data inline."""
        if self.whole is not None:
            return _parsed(self.whole)
        proto = inline_head(self.head)
        if self.raw is not None:
            proto.raw_data = bytes(self.raw)
        return proto

    def pieces(self) -> list[Buffer]:
        """The serialised TensorProto with its data inline, in pieces that need no copy."""
        if self.whole is not None:
            return [self.whole]
        head = memoryview(inline_head(self.head).SerializeToString(deterministic=True))
        raw = self.raw if self.raw is not None else b""
        before = wire.only(head, range(1, _RAW_DATA))
        after = wire.only(head, range(_RAW_DATA + 1, 1 << 29))
        return [before, wire.header(_RAW_DATA, len(raw)), raw, after]


def _parsed(data: Buffer) -> TensorProto:
    proto = TensorProto()
    try:
        proto.ParseFromString(bytes(data))
    except DecodeError as error:
        raise FormatError("a constant in it is not readable", hint="the file is damaged") from error
    return proto


def check_room(name: str, dims: Sequence[int], stored: int) -> None:
    """Refuse a shape with so many elements that ``stored`` bytes cannot hold them.

    The smallest element type of ONNX has two bits; a protobuf field may pack four of these into
    one byte.

    Raises:
        FormatError: the tensor has more elements than that.
    """
    size = math.prod(max(size, 0) for size in dims)
    if size > 4 * stored:
        raise FormatError(
            f"constant {name!r} has the shape {list(dims)}, but only {stored:,} bytes of data",
            hint="the file is damaged",
        )


def inline_head(head: TensorProto) -> TensorProto:
    """A copy of ``head`` that no longer points to an external file."""
    copy = TensorProto()
    copy.CopyFrom(head)
    copy.ClearField("external_data")
    copy.ClearField("data_location")
    return copy


def proto_array(proto: TensorProto) -> Array:
    """The values of a TensorProto whose data is inline.

    Raises:
        FormatError: the data does not fit the tensor's type and shape.
    """
    try:
        dtype = numpy_dtype(proto.data_type)
        if proto.HasField("raw_data") and dtype is not None:
            return np.frombuffer(proto.raw_data, dtype).reshape(tuple(proto.dims))
        if proto.data_type == TensorProto.BFLOAT16 and dtype is not None:
            bits = np.fromiter(proto.int32_data, np.uint16)
            return np.asarray(bits.view(dtype)).reshape(tuple(proto.dims))
        return np.asarray(numpy_helper.to_array(proto))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise FormatError(
            f"constant {str(proto.name)!r} does not fit its type and shape: {error}",
            hint="the file is damaged",
        ) from error


def from_wire(data: memoryview) -> Tensor:
    """The tensor that is serialised in ``data``, without a copy of its values.

    Raises:
        WireError: the bytes are malformed.
    """
    raw: memoryview | None = None
    head: list[memoryview] = []
    for field in wire.fields(data):
        if field.number == _RAW_DATA:
            if field.wire_type != wire.DELIMITED:
                raise wire.WireError("the data of a constant is not a sequence of bytes")
            raw = data[field.content : field.end]
        elif field.number not in _DATA_FIELDS:
            head.append(data[field.start : field.end])
    return Tensor(head=TensorProto.FromString(b"".join(head)), raw=raw, whole=data)


def from_array(name: str, values: Array) -> Tensor:
    """A new constant."""
    array = np.ascontiguousarray(values)
    head = TensorProto(name=name, data_type=onnx_dtype(array.dtype), dims=values.shape)
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.byteswap()
    return Tensor(head=head, raw=array.reshape(-1).view(np.uint8).data)


def value_info(tensor: Tensor) -> onnx.ValueInfoProto:
    """The tensor as a typed graph input."""
    return onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
