"""Read and write protobuf's wire format, so that tensors are not copied.

Parsing a model with protobuf copies every weight, and serialising it copies them again. An
ONNX file is a sequence of length-delimited fields, so the weights can be taken out as
views of the file's bytes and written back as they are; protobuf only parses the graph.
Wire format: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5
HIGHEST_NUMBER = 2**29 - 1
"""The highest number that a field can have."""


class WireError(ValueError):
    """The bytes are not a protobuf message."""


class WireField(NamedTuple):
    """One field of a message: ``start:end`` with its tag, ``content:end`` without."""

    number: int
    wire_type: int
    start: int
    content: int
    end: int


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if position >= len(data):
            raise WireError("it ends in the middle of a field")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise WireError("a number in it is malformed")


def fields(data: memoryview) -> Iterator[WireField]:
    """Walk the top-level fields of a message.

    Raises:
        WireError: a field is malformed or reaches past the end.
    """
    position, size = 0, len(data)
    while position < size:
        start = position
        tag, content = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == DELIMITED:
            length, content = _varint(data, content)
            end = content + length
        elif wire_type == VARINT:
            _, end = _varint(data, content)
        elif wire_type in (FIXED64, FIXED32):
            end = content + (8 if wire_type == FIXED64 else 4)
        else:
            raise WireError(f"it has a field of unknown type {wire_type}")
        if not 0 < number <= HIGHEST_NUMBER:
            raise WireError(f"it has a field numbered {number}")
        if end > size:
            raise WireError(f"it ends {end - size:,} bytes too early")
        yield WireField(number, wire_type, start, content, end)
        position = end


def without(data: memoryview, numbers: Container[int]) -> bytes:
    """The message without the fields of these numbers."""
    return b"".join(data[f.start : f.end] for f in fields(data) if f.number not in numbers)


def only(data: memoryview, numbers: Container[int]) -> bytes:
    """The message with the fields of these numbers alone."""
    return b"".join(data[f.start : f.end] for f in fields(data) if f.number in numbers)


def varint(value: int) -> bytes:
    """A non-negative number in the wire format."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def header(number: int, length: int) -> bytes:
    """The tag and length of a length-delimited field."""
    return varint(number << 3 | DELIMITED) + varint(length)


def total(pieces: Iterable[bytes | memoryview]) -> int:
    """The number of bytes in the pieces."""
    return sum(len(piece) for piece in pieces)
