"""Write an ONNX model; bytes that did not change are copied from file to file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from onnx import ModelProto, StringStringEntryProto, TensorProto

from dacconv.errors import FormatError
from dacconv.formats.onnx.document import Document, pieces
from dacconv.formats.onnx.load import read
from dacconv.formats.onnx.tensors import Buffer, Tensor, inline_head
from dacconv.graph.plan_json import plan_to_dict
from dacconv.graph.types import Plan
from dacconv.support.files import replacing

INLINE_LIMIT = 2**31 - 2**24
"""Protobuf cannot hold 2 GiB; some of that is left for the graph."""
_EXTERNAL_FROM = 1024
_PAGE, _PAGED_FROM, _LINE = 4096, 1 << 20, 64
_KEYS = ("dacconv", "dacconv_plan")


def inline_size(document: Document) -> int:
    """Roughly the size of the model with every weight inside."""
    nodes: int = sum(entry.proto.ByteSize() for entry in document.entries)
    return nodes + sum(tensor.stored + 256 for tensor in document.tensors.values())


def needs_side_file(document: Document) -> bool:
    """Whether weights are written to an external data file: some were, or they are too large."""
    return document.external or inline_size(document) > INLINE_LIMIT


def side_path(path: Path) -> Path:
    """The external data file of the model at ``path``."""
    return path.with_name(path.name + ".data")


def save(
    document: Document, path: Path, provenance: Mapping[str, Any], plan: Plan
) -> tuple[Path, ...]:
    """Write the model and, where it has one, its external data; return what was written.

    Raises:
        WriteError: a file cannot be written; no part of it is left.
    """
    stamped = _stamped(document, provenance, plan)
    if not needs_side_file(document):
        with replacing(path) as (temporary,), temporary.open("wb") as stream:
            write(stamped, stream, None, "")
        return (path,)
    side = side_path(path)
    with (
        replacing(side, path) as (side_temporary, temporary),
        side_temporary.open("wb") as side_stream,
        temporary.open("wb") as stream,
    ):
        write(stamped, stream, side_stream, side.name)
    return (path, side)


def write(document: Document, stream: BinaryIO, side: BinaryIO | None, location: str) -> None:
    """Write the model to ``stream``, and its large tensors to ``side`` if there is one."""
    if side is None:
        for piece in pieces(document):
            stream.write(piece)
        return
    tensors: list[list[Buffer]] = []
    for tensor in document.tensors.values():
        if _goes_outside(tensor, document):
            tensors.append([_outside(tensor, side, location)])
        else:
            tensors.append(tensor.pieces())
    for piece in pieces(document, tensors):
        stream.write(piece)


def _goes_outside(tensor: Tensor, document: Document) -> bool:
    """External tensors and new ones are external; all large ones are if the model is too large."""
    if tensor.raw is None or not len(tensor.raw):
        return False
    if tensor.external:
        return True
    moves = tensor.whole is None or not document.external
    return moves and len(tensor.raw) >= _EXTERNAL_FROM


def _outside(tensor: Tensor, side: BinaryIO, location: str) -> bytes:
    """Write a tensor's bytes to the side file; return the TensorProto that points there."""
    raw = tensor.raw if tensor.raw is not None else b""
    step = _PAGE if len(raw) >= _PAGED_FROM else _LINE
    side.write(b"\0" * (-side.tell() % step))
    entries = {"location": location, "offset": side.tell(), "length": len(raw)}
    side.write(raw)
    head = inline_head(tensor.head)
    head.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        head.external_data.append(StringStringEntryProto(key=key, value=str(value)))
    return bytes(head.SerializeToString(deterministic=True))


def _stamped(document: Document, provenance: Mapping[str, Any], plan: Plan) -> Document:
    """The document with provenance and plan in its metadata, replacing earlier ones."""
    header = ModelProto()
    header.CopyFrom(document.header)
    others = [
        StringStringEntryProto(key=p.key, value=p.value)
        for p in header.metadata_props
        if p.key not in _KEYS
    ]
    texts = (_json(provenance), _json(plan_to_dict(plan)))
    del header.metadata_props[:]
    header.metadata_props.extend(others)
    header.metadata_props.extend(
        StringStringEntryProto(key=key, value=text) for key, text in zip(_KEYS, texts, strict=True)
    )
    return replace(document, header=header)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def recorded(path: Path, *, trust_pickle: bool) -> dict[str, Any] | None:
    """The provenance and plan in the metadata of an ONNX file; None if it has none.

    Raises:
        FormatError: the file is damaged, or they are not JSON.
    """
    properties = {p.key: p.value for p in read(path).header.metadata_props}
    if not set(_KEYS) <= set(properties):
        return None
    try:
        origin, plan = (json.loads(properties[key]) for key in _KEYS)
    except ValueError as error:
        raise FormatError(f"its plan is not JSON: {error}", where=str(path)) from error
    return {"provenance": origin, "plan": plan}
