"""Strict reading of zip archives: all readers find the same records in an archive that passes.

Checkpoints, .pt2 programs and .npz arrays are zip archives. A crafted one may name a record
twice, contradict itself about the place of a record, hide data between records, or unpack to a
thousand times its size. Other readers resolve such things differently, so that the records that
one has checked are not those that another one opens. Here all of them are errors; no ordinary tool
writes such archives.

The layout is that of PKWARE's APPNOTE.TXT 6.3: local headers and data one after the other, then
the central directory, then the end record, for each of them also the 64-bit form.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Self

MOST_RATIO = 20
"""The largest total size of the unpacked records, as a multiple of the archive's size."""
MOST_UNPACKED = 256 << 20
"""The number of bytes that the unpacked records may have in any case."""
MOST_RECORDS = 200_000

_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_CENTRAL, _LOCAL, _DESCRIPTOR = b"PK\x01\x02", b"PK\x03\x04", b"PK\x07\x08"
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _STREAMED = 0x1, 0x8
_BLOCK = 1 << 20


class ArchiveError(ValueError):
    """An archive that is damaged, contradicts itself, or unpacks to too much."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A record: ``size`` bytes, stored as ``packed`` bytes of the archive from ``start`` on.

    ``checksums`` are the places of the archive at which its CRC-32 is stored.
    """

    name: str
    method: int
    checksum: int
    packed: int
    size: int
    start: int
    checksums: tuple[int, ...] = ()

    @property
    def stored(self) -> bool:
        """Whether the bytes are stored without compression."""
        return self.method == _STORED


@dataclass(frozen=True, slots=True)
class _Place:
    """An entry of the central directory; ``offset`` is the place of the local header."""

    entry: Entry
    flags: int
    offset: int


class Archive:
    """The records of a zip archive by name; a context manager.

    Args:
        source: a path, the bytes of an archive, or a stream that stays open.

    Raises:
        ArchiveError: it is not an archive, is damaged or contradicts itself.
        OSError: it cannot be read.
    """

    def __init__(self, source: Path | bytes | IO[bytes]) -> None:
        self._stream, self._own = _opened(source)
        try:
            self.size = self._stream.seek(0, io.SEEK_END)
            self.records: Mapping[str, Entry] = self._directory()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._own:
            self._stream.close()

    def read(self, name: str, most: int | None = None) -> bytearray:
        """The bytes of a record.

        Raises:
            ArchiveError: the record is missing, has more than ``most`` bytes, or is damaged.
        """
        entry = self.records.get(name)
        if entry is None:
            raise ArchiveError(f"the record {name!a} is missing")
        if most is not None and entry.size > most:
            raise ArchiveError(f"the record {name!a} has {entry.size:,} bytes, more than {most:,}")
        data = bytearray(entry.size)
        at = 0
        for block in self._blocks(entry):
            data[at : at + len(block)] = block
            at += len(block)
        return data

    def start(self, name: str, most: int) -> bytes:
        """The first bytes of a record, at most ``most``, without a check of its checksum."""
        data = b""
        for block in self._unpacked(self.records[name]):
            data += block
            if len(data) >= most:
                break
        return data[:most]

    def check(self) -> None:
        """Read every record; ArchiveError where one is damaged."""
        for entry in self.records.values():
            for _ in self._blocks(entry):
                pass

    def _blocks(self, entry: Entry) -> Iterator[bytes]:
        """The unpacked bytes of a record; its length and checksum are checked at the end."""
        checksum = count = 0
        for block in self._unpacked(entry):
            checksum = zlib.crc32(block, checksum)
            count += len(block)
            if count > entry.size:
                break
            yield block
        if count != entry.size or checksum != entry.checksum:
            raise ArchiveError(f"the record {entry.name!a} does not match its checksum or its size")

    def _unpacked(self, entry: Entry) -> Iterator[bytes]:
        unpacker = None if entry.stored else zlib.decompressobj(-zlib.MAX_WBITS)
        end = entry.start + entry.packed
        for at in range(entry.start, end, _BLOCK):
            block = self._at(at, min(_BLOCK, end - at))
            if unpacker is None:
                yield block
                continue
            try:
                while block and not unpacker.eof:
                    yield unpacker.decompress(block, _BLOCK)
                    block = unpacker.unconsumed_tail
            except zlib.error as error:
                raise ArchiveError(f"the record {entry.name!a} is damaged: {error}") from error
        if unpacker is not None and (not unpacker.eof or unpacker.unused_data):
            raise ArchiveError(f"the record {entry.name!a} is cut short or has bytes left over")

    def _at(self, offset: int, length: int) -> bytes:
        self._stream.seek(offset)
        data = self._stream.read(length)
        if len(data) != length:
            raise ArchiveError("it is cut short")
        return data

    def _directory(self) -> dict[str, Entry]:
        """The records; each must begin where the one before it ends."""
        start, length, count = self._end()
        places = sorted(self._central(start, length, count), key=lambda place: place.offset)
        records: dict[str, Entry] = {}
        folded: dict[str, str] = {}
        at = unpacked = 0
        for place in places:
            entry, at = self._local(place, at)
            other = folded.setdefault(entry.name.casefold(), entry.name)
            if entry.name in records or other != entry.name:
                raise ArchiveError(f"it has two records named {entry.name!a}")
            records[entry.name] = entry
            unpacked += entry.size
        if at != start:
            raise ArchiveError("there are bytes between its records and its directory")
        most = max(MOST_UNPACKED, MOST_RATIO * self.size)
        if unpacked > most:
            raise ArchiveError(
                f"it has {self.size:,} bytes and would unpack to {unpacked:,}; at most {most:,} "
                "are read"
            )
        return records

    def _end(self) -> tuple[int, int, int]:
        """The start and length of the central directory, and the number of records."""
        if self.size < 22:
            raise ArchiveError("it is cut short")
        at = self.size - 22
        mark, disk, first, here, count, length, start, comment = struct.unpack(
            "<4s4H2LH", self._at(at, 22)
        )
        if mark != _END or comment:
            raise ArchiveError("it does not end as a zip archive does: cut short or added to")
        if at >= 20 and self._at(at - 20, 4) == _LOCATOR:
            _, _, where, _ = struct.unpack("<4sLQL", self._at(at - 20, 20))
            if where != at - 76 or where < 0:
                raise ArchiveError("its end records contradict each other")
            long = struct.unpack("<4sQ2H2L4Q", self._at(where, 56))
            near, far = (here, count, length, start), long[6:]
            limits = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
            if long[0] != _END64 or long[1] != 44 or long[4] or long[5]:
                raise ArchiveError("its 64-bit end record is damaged")
            for value, other, limit in zip(near, far, limits, strict=True):
                if value not in (other, limit):
                    raise ArchiveError("its end records contradict each other")
            (here, count, length, start), at = far, where
        if disk or first or here != count:
            raise ArchiveError("it is in several parts")
        if count > MOST_RECORDS:
            raise ArchiveError(f"it has {count:,} records; at most {MOST_RECORDS:,} are read")
        if start + length != at:
            raise ArchiveError("its directory is not where it says")
        return start, length, count

    def _central(self, start: int, length: int, count: int) -> Iterator[_Place]:
        """The entries of the central directory."""
        data, at = self._at(start, length), 0
        for _ in range(count):
            if len(data) - at < 46 or data[at : at + 4] != _CENTRAL:
                raise ArchiveError("its directory is damaged")
            fields = struct.unpack("<4s6H3L5H2L", data[at : at + 46])
            flags, method, checksum = fields[3], fields[4], fields[7]
            name_length, extra_length, comment_length = fields[10:13]
            end = at + 46 + name_length + extra_length + comment_length
            if end > len(data) or fields[13]:
                raise ArchiveError("its directory is damaged")
            name = _name(data[at + 46 : at + 46 + name_length], flags)
            extra = data[at + 46 + name_length : end - comment_length]
            # the 64-bit values come in this order, each only where the 32 bits are all set
            size, packed, offset = _long(extra, (fields[9], fields[8], fields[16]))
            if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
                raise ArchiveError(f"the record {name!a} is encrypted or packed in an odd way")
            if method == _STORED and size != packed:
                raise ArchiveError(f"the record {name!a} has two sizes")
            entry = Entry(name, method, checksum, packed, size, 0, (start + at + 16,))
            yield _Place(entry, flags, offset)
            at = end
        if at != len(data):
            raise ArchiveError("its directory is damaged")

    def _local(self, place: _Place, at: int) -> tuple[Entry, int]:
        """The record at ``at`` and its end; its local header must agree with the directory."""
        entry = place.entry
        if place.offset != at:
            raise ArchiveError(f"the record {entry.name!a} overlaps another or has bytes before it")
        head = struct.unpack("<4s5H3L2H", self._at(at, 30))
        flags, method, checksum, packed, size = head[2], head[3], *head[6:9]
        name = self._at(at + 30, head[9])
        extra = self._at(at + 30 + head[9], head[10])
        size, packed = _long(extra, (size, packed))
        local, central = (checksum, packed, size), (entry.checksum, entry.packed, entry.size)
        streamed = bool(flags & _STREAMED)
        if (
            head[0] != _LOCAL
            or _name(name, flags) != entry.name
            or (flags, method) != (place.flags, entry.method)
            or any(
                value != other and not (streamed and value in (0, 0xFFFFFFFF))
                for value, other in zip(local, central, strict=True)
            )
        ):
            raise ArchiveError(f"the record {entry.name!a} has two headers that differ")
        start = at + 30 + head[9] + head[10]
        end = start + entry.packed
        places = entry.checksums if streamed and not checksum else (*entry.checksums, at + 14)
        if streamed:
            marked = self._at(end, min(4, self.size - end)) == _DESCRIPTOR
            length = self._descriptor(end, entry)
            places = (*places, end + 4 * (marked and length in (16, 24)))
            end += length
        return replace(entry, start=start, checksums=places), end

    def _descriptor(self, at: int, entry: Entry) -> int:
        """The length of the checksum and sizes behind a record, which have one of four forms."""
        data = self._at(at, min(24, self.size - at))
        for mark in (_DESCRIPTOR, b""):
            for form in ("<LLL", "<LQQ"):
                whole = mark + struct.pack("<L", entry.checksum)
                try:
                    whole += struct.pack(form, entry.checksum, entry.packed, entry.size)[4:]
                except struct.error:
                    continue
                if data.startswith(whole) and self._starts(at + len(whole)):
                    return len(whole)
        raise ArchiveError(f"the record {entry.name!a} has two headers that differ")

    def _starts(self, at: int) -> bool:
        """Whether a header of any kind is at ``at``."""
        return self._at(at, min(4, self.size - at)) in (_LOCAL, _CENTRAL)


def _opened(source: Path | bytes | IO[bytes]) -> tuple[IO[bytes], bool]:
    """A stream of the archive, and whether to close it."""
    if isinstance(source, Path):
        return source.open("rb"), True
    if isinstance(source, bytes):
        return io.BytesIO(source), True
    return source, False


def _name(raw: bytes, flags: int) -> str:
    """A record's name; ArchiveError for one that readers may interpret differently."""
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArchiveError(f"the name {raw[:80]!a} of a record is not UTF-8") from error
    parts = name.removesuffix("/").split("/")
    if (
        not name
        or len(name) > 1000
        or not name.isprintable()
        or "\\" in name
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise ArchiveError(f"the name {name[:80]!a} of a record is not plain")
    return name


def _long(extra: bytes, values: tuple[int, ...]) -> tuple[int, ...]:
    """32-bit values; those with all bits set are replaced by 64-bit values of the extra field."""
    if 0xFFFFFFFF not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack("<2H", extra[at : at + 4])
        if kind == 1:
            longer = iter(
                struct.unpack(f"<{length // 8}Q", extra[at + 4 : at + 4 + length // 8 * 8])
            )
            return tuple(next(longer, v) if v == 0xFFFFFFFF else v for v in values)
        at += 4 + length
    return values
