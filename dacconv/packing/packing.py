"""Files of a model to a packed file and back, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dacconv.errors import FormatError
from dacconv.formats.spans import WIDTHS, ModelFile, Span
from dacconv.packing.container import (
    FileEntry,
    Packed,
    Range,
    Stream,
    from_bytes,
    is_plain_name,
    rest_of,
)
from dacconv.packing.entropy import Buffer, PackedError
from dacconv.packing.levels import Levels, from_levels, to_levels
from dacconv.packing.squeeze import (
    expand,
    from_planes,
    squeeze,
    to_planes,
)

MOST_STREAM = 64 << 20
"""Bytes of a stream of byte planes; larger tensors have a stream of their own."""

_DAMAGED = "copy or download it again; a packed file cannot be repaired"


def pack(
    kind: str,
    files: Sequence[ModelFile],
    contents: Sequence[Buffer],
    rounded: Mapping[tuple[int, int], Levels] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Packed:
    """The files of a model, packed without loss.

    Args:
        kind: the format of the model.
        files: the files and the tensors in them.
        contents: the bytes of each file.
        rounded: the levels that the numbers of some tensors were rounded to, by the number of
            the file and the start of the tensor in it.
        about: how the model was packed, as JSON values.

    Raises:
        FormatError: a file has a name that cannot be kept.
    """
    rounded = rounded or {}
    entries = []
    for file, data in zip(files, contents, strict=True):
        if not is_plain_name(file.name):
            raise FormatError(
                f"its name {file.name!a} is not plain, and could not be unpacked everywhere",
                where=str(file.path),
                hint="rename the file: no control characters, no backslashes, no colons",
            )
        entries.append(FileEntry(file.name, len(data), hashlib.sha256(data).hexdigest()))
    spans = [(number, span) for number, file in enumerate(files) for span in file.spans]
    streams: list[Stream] = []
    if rounded:
        leveled = [(n, span) for n, span in spans if (n, span.start) in rounded]
        facts, packed = to_levels([(rounded[n, span.start], span.dtype) for n, span in leveled])
        streams.append(Stream("levels", _ranges(leveled), packed, facts))
    plain = [(number, span) for number, span in spans if (number, span.start) not in rounded]
    for group in _groups(plain):
        ranges = _ranges(group)
        facts, packed = to_planes(_gathered(contents, ranges), WIDTHS[group[0][1].dtype])
        streams.append(Stream("planes", ranges, packed, facts))
    rest = rest_of(entries, streams)
    packed = squeeze(_gathered(contents, rest))
    return Packed(kind, tuple(entries), tuple(streams), Stream("zstd", rest, packed), about or {})


def unpack(data: Buffer, where: str) -> tuple[Packed, tuple[bytearray, ...]]:
    """A packed file, and the bytes of the files in it, checked against their SHA-256.

    Raises:
        FormatError: it is damaged, or unpacks to too much.
    """
    try:
        packed = from_bytes(data)
        contents = tuple(bytearray(file.size) for file in packed.files)
        for stream in (*packed.streams, packed.rest):
            _scatter(contents, stream.ranges, _expanded(stream))
        for file, content in zip(packed.files, contents, strict=True):
            if hashlib.sha256(content).hexdigest() != file.sha256:
                raise PackedError(f"the unpacked bytes of {file.name} do not match their checksum")
    except (PackedError, KeyError, TypeError, ValueError, MemoryError) as error:
        raise FormatError(
            f"not a packed model that can be unpacked: {error}", where=where, hint=_DAMAGED
        ) from error
    return packed, contents


def read_packed(path: Path) -> bytes:
    """The bytes of the packed file at ``path``; FormatError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror or error}", where=str(path)) from error


def _expanded(stream: Stream) -> bytes:
    if stream.codec == "zstd":
        return expand(stream.data, stream.length)
    if stream.codec == "planes":
        return from_planes(stream.facts, stream.data, stream.length)
    if stream.codec == "levels":
        lengths = [each.length for each in stream.ranges]
        return b"".join(from_levels(stream.facts, stream.data, lengths))
    raise PackedError(f"it has a stream of the unknown codec {stream.codec!a:.40}")


def _ranges(spans: Sequence[tuple[int, Span]]) -> tuple[Range, ...]:
    return tuple(Range(number, span.start, span.length) for number, span in spans)


def _groups(spans: Sequence[tuple[int, Span]]) -> Iterator[list[tuple[int, Span]]]:
    """The spans by dtype, in order, in groups of at most ``MOST_STREAM`` bytes."""
    for dtype in WIDTHS:
        group: list[tuple[int, Span]] = []
        size = 0
        for number, span in spans:
            if span.dtype != dtype:
                continue
            if group and size + span.length > MOST_STREAM:
                yield group
                group, size = [], 0
            group.append((number, span))
            size += span.length
        if group:
            yield group


def _gathered(contents: Sequence[Buffer], ranges: Sequence[Range]) -> bytes:
    views = [memoryview(content) for content in contents]
    return b"".join(views[each.file][each.start : each.end] for each in ranges)


def _scatter(contents: Sequence[bytearray], ranges: Sequence[Range], data: bytes) -> None:
    at, view = 0, memoryview(data)
    for each in ranges:
        contents[each.file][each.start : each.end] = view[at : at + each.length]
        at += each.length
