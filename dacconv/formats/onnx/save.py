"""Write an ONNX model; bytes that did not change are copied from file to file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
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


def data_files(path: Path) -> tuple[Path, ...]:
    """The external data files that were written for a model at ``path``; there may be several.

    A data file is called ``NAME.DIGEST.data`` after the model and its own bytes. So a model that
    replaces another one never has the same data file: were the program killed between the two
    renames, the old graph would still find its old data.
    """
    pattern = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.data")
    try:
        return tuple(sorted(p for p in path.parent.iterdir() if pattern.fullmatch(p.name)))
    except OSError:
        return ()


def save(
    document: Document, path: Path, provenance: Mapping[str, Any], plan: Plan
) -> tuple[Path, ...]:
    """Write the model and, where it has one, its external data; return what was written.

    Raises:
        WriteError: a file cannot be written; no part of it is left.
    """
    stamped = _stamped(document, provenance, plan)
    outside = any(_goes_outside(tensor, document) for tensor in document.tensors.values())
    if not (needs_side_file(document) and outside):
        with replacing(path) as (temporary,), temporary.open("wb") as stream:
            write(stamped, stream)
        return (path,)
    unnamed, names = path.with_name(f"{path.name}.data"), dict[Path, Path]()
    with (
        replacing(unnamed, path, renamed=names) as (side_temporary, temporary),
        side_temporary.open("wb") as side_stream,
        temporary.open("wb") as stream,
    ):
        hashing = _Hashing(side_stream)
        places = write_data(stamped, hashing)
        side = path.with_name(f"{path.name}.{hashing.digest.hexdigest()[:16]}.data")
        names[unnamed] = side
        write(stamped, stream, places, side.name)
    remove_data_files(path, keep=(side,))
    return (path, side)


def remove_data_files(path: Path, keep: Iterable[Path]) -> None:
    """Remove the external data files of models that were at ``path`` before, except ``keep``."""
    for old in set(data_files(path)) - set(keep):
        with suppress(OSError):
            old.unlink()


class _Hashing:
    """A stream that is written on, and the digest of what was written."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.digest, self.size = stream, hashlib.sha256(), 0

    def write(self, data: Buffer) -> None:
        """Write some bytes."""
        self.stream.write(data)
        self.digest.update(data)
        self.size += len(data)


def write_data(document: Document, side: _Hashing) -> dict[str, int]:
    """Write the large tensors to ``side``; return their offsets by name."""
    offsets: dict[str, int] = {}
    for name, tensor in document.tensors.items():
        if _goes_outside(tensor, document):
            raw = tensor.raw if tensor.raw is not None else b""
            step = _PAGE if len(raw) >= _PAGED_FROM else _LINE
            side.write(b"\0" * (-side.size % step))
            offsets[name] = side.size
            side.write(raw)
    return offsets


def write(
    document: Document,
    stream: BinaryIO,
    offsets: Mapping[str, int] | None = None,
    location: str = "",
) -> None:
    """Write the model to ``stream``; the tensors in ``offsets`` are in the file ``location``."""
    tensors: list[list[Buffer]] | None = None
    if offsets is not None:
        tensors = [
            [_outside(tensor, offsets[name], location)] if name in offsets else tensor.pieces()
            for name, tensor in document.tensors.items()
        ]
    for piece in pieces(document, tensors):
        stream.write(piece)


def write_with_data(document: Document, path: Path) -> None:
    """Write the model with its large tensors beside it, without checks and temporary files."""
    side = path.with_name(f"{path.name}.data")
    with side.open("wb") as stream:
        offsets = write_data(document, _Hashing(stream))
    with path.open("wb") as stream:
        write(document, stream, offsets, side.name)


def _goes_outside(tensor: Tensor, document: Document) -> bool:
    """External tensors and new ones are external; all large ones are if the model is too large."""
    if tensor.raw is None or not len(tensor.raw):
        return False
    if tensor.external:
        return True
    moves = tensor.whole is None or not document.external
    return moves and len(tensor.raw) >= _EXTERNAL_FROM


def _outside(tensor: Tensor, offset: int, location: str) -> bytes:
    """The TensorProto that points to a tensor's bytes in the side file."""
    length = 0 if tensor.raw is None else len(tensor.raw)
    entries = {"location": location, "offset": offset, "length": length}
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
