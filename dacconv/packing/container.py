"""The container of packed models: ``docs/packed_files.md`` describes it byte by byte.

A packed file is a magic number, a JSON header, the data of its streams, and a SHA-256 of all that.
The header lists the files of the model and the streams that they are made of. A stream gives the
bytes of some ranges of these files, in order. Nothing in a packed file is code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from dacconv.errors import FormatError
from dacconv.packing.entropy import Buffer, PackedError
from dacconv.packing.squeeze import expand, squeeze
from dacconv.support.json_values import is_count, unique_keys

MAGIC = b"\x89DCZ\r\n\x1a\n"
VERSION = 1
MOST_HEADER = 16 << 20
"""Bytes of the header when it is unpacked."""
MOST_UNPACKED = 256 << 20
"""Bytes that the files may have together in any case."""
MOST_RATIO = 200
"""The largest size of the files together, as a multiple of the size of the packed file."""
MOST_FILES = 1000
_PREFIX = len(MAGIC) + 16
_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the packed model: its name relative to the model's folder, size and SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of a file, which is given by its number."""

    file: int
    start: int
    length: int

    @property
    def end(self) -> int:
        """The place of the first byte behind it."""
        return self.start + self.length


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Packed bytes of some ranges: the codec, its parameters as JSON values, and its data."""

    codec: str
    ranges: tuple[Range, ...]
    data: bytes | memoryview
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """The number of bytes that it unpacks to."""
        return sum(each.length for each in self.ranges)


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """The content of a packed file.

    ``kind`` is the format of the model, ``about`` says how it was packed. ``rest`` has the bytes
    that no stream gives, in the order of the files.
    """

    kind: str
    files: tuple[FileEntry, ...]
    streams: tuple[Stream, ...]
    rest: Stream
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unpacked(self) -> int:
        """The bytes of the files together."""
        return sum(file.size for file in self.files)


def to_bytes(packed: Packed) -> bytes:
    """The packed file.

    Raises:
        FormatError: the model is so large beside its packed form that ``from_bytes`` refuses it.
    """
    header = {
        "version": VERSION,
        "kind": packed.kind,
        "about": dict(packed.about),
        "files": [[file.name, file.size, file.sha256] for file in packed.files],
        "streams": [_described(stream) for stream in packed.streams],
        "rest": {"size": len(packed.rest.data)},
    }
    text = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    squeezed = squeeze(text, level=19)
    pieces = [
        MAGIC,
        len(squeezed).to_bytes(8, "little"),
        len(text).to_bytes(8, "little"),
        squeezed,
        *(stream.data for stream in (*packed.streams, packed.rest)),
    ]
    body = b"".join(pieces)
    whole = body + hashlib.sha256(body).digest()
    if packed.unpacked > most_unpacked(len(whole)) or len(text) > MOST_HEADER:
        raise FormatError(
            f"{packed.unpacked:,} bytes would pack into {len(whole):,}, which unpack refuses as a "
            "decompression bomb",
            hint="use zstd or gzip for a file of nothing but repetitions",
        )
    return whole


def from_bytes(data: Buffer) -> Packed:
    """Read a packed file, and check everything but the data of the streams.

    Raises:
        PackedError: it is cut, changed, or claims what it does not hold.
    """
    data = memoryview(data)
    if len(data) < _PREFIX + _DIGEST or data[: len(MAGIC)] != MAGIC:
        raise PackedError("it does not begin as a packed model does, or is cut short")
    body = data[:-_DIGEST]
    if hashlib.sha256(body).digest() != data[-_DIGEST:]:
        raise PackedError("its bytes do not match its checksum: it is cut short or changed")
    packed_length = int.from_bytes(data[8:16], "little")
    length = int.from_bytes(data[16:24], "little")
    start = _PREFIX + packed_length
    if start > len(body) or length > MOST_HEADER:
        raise PackedError("its header is longer than it may be")
    header = _header(expand(body[_PREFIX:start], length))
    try:
        return _packed(header, body, start)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise PackedError(f"its header is damaged: {error!r:.200}") from error


def most_unpacked(size: int) -> int:
    """The bytes that a packed file of ``size`` bytes may unpack to."""
    return max(MOST_UNPACKED, MOST_RATIO * size)


def _described(stream: Stream) -> dict[str, Any]:
    numbers = [n for each in stream.ranges for n in (each.file, each.start, each.length)]
    return {"codec": stream.codec, "ranges": numbers, "size": len(stream.data), **stream.facts}


def _header(text: bytes) -> Mapping[str, Any]:
    try:
        header = json.loads(text, parse_constant=_refuse, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise PackedError(f"its header is not JSON: {error!s:.200}") from error
    if not isinstance(header, dict):
        raise PackedError("its header is not a JSON object")
    version = header.get("version")
    if type(version) is not int or version != VERSION:
        raise PackedError(f"it is of version {version!r:.20}, and version {VERSION} can be read")
    return header


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _packed(header: Mapping[str, Any], body: memoryview, start: int) -> Packed:
    files = tuple(_file(entry) for entry in header["files"])
    names = [file.name.casefold() for file in files]
    if not files or len(files) > MOST_FILES or len(set(names)) != len(names):
        raise PackedError("it has no files, too many, or two of the same name")
    unpacked, most = sum(file.size for file in files), most_unpacked(len(body) + _DIGEST)
    if unpacked > most:
        raise PackedError(
            f"it has {len(body):,} bytes and would unpack to {unpacked:,}; at most {most:,} are "
            "read"
        )
    streams: list[Stream] = []
    at = start
    for facts in header["streams"]:
        ranges = _ranges(facts["ranges"], files)
        data, at = _data(body, at, facts["size"])
        own = {k: v for k, v in facts.items() if k not in ("codec", "ranges", "size")}
        streams.append(Stream(str(facts["codec"]), ranges, data, own))
    data, at = _data(body, at, header["rest"]["size"])
    if at != len(body):
        raise PackedError("there are bytes behind its last stream")
    rest = Stream("zstd", rest_of(files, streams), data)
    about, kind = header["about"], header["kind"]
    if not isinstance(about, dict) or not isinstance(kind, str):
        raise PackedError("its header is damaged")
    return Packed(kind, files, tuple(streams), rest, about)


def _file(entry: Sequence[Any]) -> FileEntry:
    name, size, sha256 = entry
    if not is_count(size) or not isinstance(sha256, str) or len(sha256) != 2 * _DIGEST:
        raise PackedError("the size or checksum of a file is damaged")
    if not is_plain_name(name):
        raise PackedError(f"the file name {name!a:.100} leads out of the folder or is not plain")
    return FileEntry(name, size, sha256)


def is_plain_name(name: object) -> bool:
    """Whether a name is a relative path that stays in its folder on every system."""
    if not isinstance(name, str) or not 0 < len(name) <= 1000 or not name.isprintable():
        return False
    parts = name.split("/")
    return not (
        "\\" in name
        or ":" in name
        or PurePosixPath(name).is_absolute()
        or PureWindowsPath(name).drive
        or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
    )


def _ranges(numbers: Any, files: Sequence[FileEntry]) -> tuple[Range, ...]:
    if not isinstance(numbers, list) or not numbers or len(numbers) % 3:
        raise PackedError("the ranges of a stream are damaged")
    ranges = []
    for at in range(0, len(numbers), 3):
        file, start, length = numbers[at : at + 3]
        if not (is_count(file) and is_count(start) and is_count(length)) or file >= len(files):
            raise PackedError("the ranges of a stream are damaged")
        if not length or start + length > files[file].size:
            raise PackedError("a stream reaches past the end of its file")
        ranges.append(Range(file, start, length))
    return tuple(ranges)


def _data(body: memoryview, at: int, size: Any) -> tuple[memoryview, int]:
    if not is_count(size) or at + size > len(body):
        raise PackedError("a stream claims more data than there is")
    return body[at : at + size], at + size


def rest_of(files: Sequence[FileEntry], streams: Sequence[Stream]) -> tuple[Range, ...]:
    """The ranges of the files that no stream gives.

    Raises:
        PackedError: two streams give the same bytes.
    """
    covered: list[list[Range]] = [[] for _ in files]
    for stream in streams:
        for each in stream.ranges:
            covered[each.file].append(each)
    return tuple(gap for i, file in enumerate(files) for gap in _gaps(i, file.size, covered[i]))


def _gaps(file: int, size: int, ranges: list[Range]) -> Iterator[Range]:
    at = 0
    for each in sorted(ranges, key=lambda each: each.start):
        if each.start < at:
            raise PackedError("two streams give the same bytes")
        if each.start > at:
            yield Range(file, at, each.start - at)
        at = each.end
    if at < size:
        yield Range(file, at, size - at)
