"""zstd with sizes that are known beforehand, and floats as byte planes.

A plane has the n-th byte of every number. The sign is moved behind the exponent first, so that the
exponents of float32 and bfloat16 fill a plane of their own: that of trained weights takes some
2.6 of 8 bits, and the mantissas cannot be compressed (ZipNN: Hershcovitch et al. 2024, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from dacconv.graph.types import Array
from dacconv.packing.entropy import Buffer, Decoder, Encoder, PackedError, table_of
from dacconv.support.json_values import is_count

PLANE_LEVEL, REST_LEVEL, FAST_LEVEL = 3, 19, 12
LARGE = 32 << 20
"""Bytes from which on the slowest level of zstd would take minutes."""
_WINDOW = 128 << 20
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def squeeze(data: Buffer, level: int | None = None) -> bytes:
    """The data as one zstd frame that states its length."""
    import zstandard

    if level is None:
        level = REST_LEVEL if len(data) <= LARGE else FAST_LEVEL
    return zstandard.ZstdCompressor(level=level).compress(data)


def expand(data: Buffer, length: int) -> bytes:
    """The ``length`` bytes of a zstd frame; no more memory than that is taken.

    Raises:
        PackedError: the frame is damaged, or states another length.
    """
    import zstandard

    try:
        stated = zstandard.frame_content_size(data)
        if stated != length:
            raise PackedError(f"a stream unpacks to {stated:,} bytes, not to {length:,}")
        unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        result = unpacker.decompress(data, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PackedError(f"a stream is damaged: {error}") from error
    if len(result) != length:
        raise PackedError(f"a stream unpacks to {len(result):,} bytes, not to {length:,}")
    return result


def to_planes(data: Buffer, width: int) -> tuple[dict[str, Any], bytes]:
    """Numbers of ``width`` bytes as compressed planes: the codec's parameters and its data.

    Each plane is range-coded, compressed by zstd, or stored as it is, whichever is smallest.
    """
    planes = _rotated(np.frombuffer(data, _UNSIGNED[width]), 1).view(np.uint8).reshape(-1, width)
    facts, pieces = [], []
    for index in range(width):
        plane = np.ascontiguousarray(planes[:, index])
        forms = {"raw": plane.tobytes(), "zstd": squeeze(plane.data, PLANE_LEVEL)}
        forms["range"] = _range_coded(plane)
        name = min(forms, key=lambda name: len(forms[name]))
        facts.append([name, len(forms[name])])
        pieces.append(forms[name])
    return {"width": width, "planes": facts}, b"".join(pieces)


def from_planes(facts: Mapping[str, Any], data: Buffer, length: int) -> bytes:
    """The bytes of :func:`to_planes`.

    Raises:
        PackedError: the parameters and the data do not fit ``length``.
    """
    width, forms = facts.get("width"), facts.get("planes")
    if type(width) is not int or width not in _UNSIGNED or length % width:
        raise PackedError("the planes of a stream are damaged")
    if not isinstance(forms, list) or len(forms) != width:
        raise PackedError("the planes of a stream are damaged")
    count, at, data = length // width, 0, memoryview(data)
    planes = np.empty((count, width), np.uint8)
    for index, (name, size) in enumerate(forms):
        if not is_count(size) or name not in _READERS:
            raise PackedError("the planes of a stream are damaged")
        piece = data[at : at + size]
        if len(piece) != size:
            raise PackedError("a stream is shorter than its planes")
        planes[:, index] = _READERS[name](piece, count)
        at += size
    if at != len(data):
        raise PackedError("a stream is longer than its planes")
    return _rotated(planes.reshape(-1).view(_UNSIGNED[width]), -1).tobytes()


def _range_coded(plane: Array) -> bytes:
    """A plane's table of frequencies, and its bytes coded by it."""
    table = table_of(np.bincount(plane, minlength=256))
    coder = Encoder()
    coder.add(plane, table)
    return table.astype("<u2").tobytes() + coder.data()


def _from_range(data: memoryview, count: int) -> Array:
    if len(data) < 512:
        raise PackedError("a table of frequencies is cut short")
    table = np.frombuffer(data[:512], "<u2").astype(np.int32)
    return Decoder(data[512:]).read(count, table).astype(np.uint8)


def _from_zstd(data: memoryview, count: int) -> Array:
    return np.frombuffer(expand(data, count), np.uint8)


def _from_raw(data: memoryview, count: int) -> Array:
    if len(data) != count:
        raise PackedError("a plane has another length than its numbers")
    return np.frombuffer(data, np.uint8)


_READERS: Mapping[str, Callable[[memoryview, int], Array]] = {
    "raw": _from_raw,
    "zstd": _from_zstd,
    "range": _from_range,
}


def _rotated(numbers: Array, by: int) -> Array:
    """The bits of unsigned little-endian numbers rotated to the left by 1, or back by -1."""
    width = 8 * numbers.dtype.itemsize
    one, most = numbers.dtype.type(1), numbers.dtype.type(width - 1)
    left, right = (one, most) if by > 0 else (most, one)
    return cast(Array, (numbers << left) | (numbers >> right))
