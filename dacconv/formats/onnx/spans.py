"""Where the float tensors of an ONNX model lie in its files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from onnx import TensorProto

from dacconv.errors import FormatError
from dacconv.formats.onnx import wire
from dacconv.formats.onnx.external import ExternalFiles
from dacconv.formats.spans import WIDTHS, ModelFile, Span, disjoint

_DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}
_NESTED = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 6: "graph", 11: "graph"},
}
"""The fields of a message of each kind that lead to tensors, and the kinds of their messages."""
_RAW_DATA, _FLOAT_DATA, _DOUBLE_DATA = 9, 4, 10
_DATA = {_RAW_DATA, _FLOAT_DATA, 5, 6, 7, _DOUBLE_DATA, 11}


def model_files(path: Path) -> tuple[ModelFile, ...]:
    """The ONNX file and its external data files, with the float tensors in each.

    Raises:
        FormatError: the file is damaged, or an external data file is missing or out of place.
    """
    try:
        data = memoryview(path.read_bytes())
        tensors = list(_tensors(data, 0, "model"))
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"not a readable ONNX file: {error}",
            where=str(path),
            hint="the file is truncated or damaged, or it is of another format",
        ) from error
    files = ExternalFiles(path)
    spans: dict[str, list[Span]] = {path.name: []}
    places = {path.name: path}
    for head, data_fields in tensors:
        if head.data_location == TensorProto.EXTERNAL:
            raw = files.bytes_of(head)
            entries = {entry.key: entry.value for entry in head.external_data}
            name = PurePosixPath(entries["location"]).as_posix()
            places.setdefault(name, path.parent / name)
            here = spans.setdefault(name, [])
            span = _span(head, int(entries.get("offset", 0)), len(raw))
        else:
            here = spans[path.name]
            span = _inline_span(head, data_fields)
        if span is not None:
            here.append(span)
    return tuple(
        ModelFile(places[name], name, disjoint(found, places[name].stat().st_size))
        for name, found in spans.items()
    )


def _tensors(
    data: memoryview, base: int, kind: str, depth: int = 0
) -> Iterator[tuple[TensorProto, list[wire.WireField]]]:
    """The tensors inside a message: their descriptions, and the fields of their data.

    The fields have the places of the file, where the message begins at ``base``.
    """
    if depth > 100:
        raise wire.WireError("its graphs are nested too deeply")
    if kind == "tensor":
        own = list(wire.fields(data))
        head = b"".join(data[f.start : f.end] for f in own if f.number not in _DATA)
        stored = [f._replace(content=base + f.content, end=base + f.end)
                  for f in own if f.number in _DATA]  # fmt: skip
        yield TensorProto.FromString(head), stored
        return
    inside = _NESTED[kind]
    for each in wire.fields(data):
        if each.number in inside and each.wire_type == wire.DELIMITED:
            part = data[each.content : each.end]
            yield from _tensors(part, base + each.content, inside[each.number], depth + 1)


def _inline_span(head: TensorProto, stored: list[wire.WireField]) -> Span | None:
    """The span of a tensor in the model's own file; None where its values are no plain floats.

    Packed ``float_data`` and ``double_data`` are little-endian numbers, as ``raw_data`` is.
    """
    if len(stored) != 1 or stored[0].wire_type != wire.DELIMITED:
        return None
    (field,) = stored
    typed: dict[int, int] = {_FLOAT_DATA: TensorProto.FLOAT, _DOUBLE_DATA: TensorProto.DOUBLE}
    if field.number != _RAW_DATA and typed.get(field.number) != head.data_type:
        return None
    return _span(head, field.content, field.end - field.content)


def _span(head: TensorProto, start: int, length: int) -> Span | None:
    dtype = _DTYPES.get(head.data_type)
    if dtype is None or length % WIDTHS[dtype]:
        return None
    count, shape = length // WIDTHS[dtype], tuple(int(size) for size in head.dims)
    fits = all(size >= 0 for size in shape) and math.prod(shape) == count
    return Span(str(head.name), start, count, dtype, shape if fits else None)
