"""Archives that two readers could take differently, or that unpack to too much, are errors."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from dacconv.support import archives
from dacconv.support.archives import Archive, ArchiveError

RECORDS = {"a/one": b"first" * 50, "a/two": b"", "a/three.bin": bytes(range(256))}


def packed(
    records: dict[str, bytes] | list[tuple[str, bytes]] = RECORDS,
    method: int = zipfile.ZIP_STORED,
    *,
    streamed: bool = False,
) -> bytes:
    """An archive as zipfile writes it; ``streamed`` with sizes behind the records."""
    whole = io.BytesIO()
    target = Stream(whole) if streamed else whole
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in dict(records).items() if isinstance(records, dict) else records:
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return whole.getvalue()


class Stream(io.RawIOBase):
    """A stream that cannot seek, such as a pipe."""

    def __init__(self, target: io.BytesIO) -> None:
        self.target = target

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        return self.target.write(bytes(data))  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("streamed", [False, True])
def test_honest_archives(tmp_path: Path, method: int, streamed: bool) -> None:
    data = packed(method=method, streamed=streamed)
    (tmp_path / "a.zip").write_bytes(data)
    for source in (data, tmp_path / "a.zip"):
        with Archive(source) as archive:
            archive.check()
            assert {name: bytes(archive.read(name)) for name in archive.records} == RECORDS
            assert archive.start("a/one", 5) == b"first"
            with pytest.raises(ArchiveError, match="missing"):
                archive.read("a/four")
            with pytest.raises(ArchiveError, match="more than 10"):
                archive.read("a/one", 10)


def test_sixty_four_bits() -> None:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive, archive.open("a", "w", force_zip64=True) as file:
        file.write(b"data")
    with Archive(whole.getvalue()) as read:
        assert bytes(read.read("a")) == b"data"


def changed(place: str, offset: int, value: bytes) -> Callable[[bytes], bytes]:
    """Write into the first local header, the first central one, or the end record."""

    def change(data: bytes) -> bytes:
        mark = {"local": b"PK\3\4", "central": b"PK\1\2", "end": b"PK\5\6"}[place]
        at = data.index(mark) + offset
        return data[:at] + value + data[at + len(value) :]

    return change


def moved(data: bytes) -> bytes:
    """The second record is the first again."""
    at = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
    return data[: at + 42] + struct.pack("<L", 0) + data[at + 46 :]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: b"#!" + data, id="data before"),
        pytest.param(lambda data: data + b"\0", id="data after"),
        pytest.param(lambda data: data[:-1], id="cut"),
        pytest.param(lambda data: data[: len(data) // 2], id="half"),
        pytest.param(lambda data: data + data, id="two archives"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data.replace(b"a/one", b"a/two", 1), id="local name"),
        pytest.param(changed("local", 6, b"\1"), id="encrypted here"),
        pytest.param(changed("central", 8, b"\1"), id="encrypted there"),
        pytest.param(changed("local", 8, b"\x08"), id="packed here"),
        pytest.param(changed("central", 10, b"\x0c"), id="bzip2"),
        pytest.param(changed("local", 14, b"\1\2\3\4"), id="local checksum"),
        pytest.param(changed("local", 18, b"\1"), id="local size"),
        pytest.param(changed("central", 24, b"\1\1"), id="central size"),
        pytest.param(changed("central", 42, b"\7"), id="offset"),
        pytest.param(changed("end", 4, b"\1"), id="second disk"),
        pytest.param(changed("end", 10, b"\2"), id="count"),
        pytest.param(changed("end", 16, b"\1"), id="directory elsewhere"),
        pytest.param(changed("end", 20, b"\1"), id="comment"),
        pytest.param(moved, id="overlap"),
    ],
)
def test_contradictions(change: Callable[[bytes], bytes]) -> None:
    data = change(packed())
    with pytest.raises(ArchiveError):
        Archive(data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("other", ["a/one", "A/One", "a/ONE"])
def test_names_twice_or_in_another_case(other: str) -> None:
    with pytest.raises(ArchiveError, match="two records"):
        Archive(packed([("a/one", b"1"), ("a/two", b"2"), (other, b"3")]))


@pytest.mark.parametrize("name", ["../a", "/a", "a//b", "a/./b", "a\\b", "a\nb", "a/..", "\x1b[2J"])
def test_names_that_are_not_plain(name: str) -> None:
    with pytest.raises(ArchiveError, match="not plain"):
        Archive(packed([(name, b"1")]))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_records_are_errors_when_read(method: int) -> None:
    data = bytearray(packed(method=method))
    data[data.index(b"a/one") + 8] ^= 0xFF
    with Archive(bytes(data)) as archive:
        with pytest.raises(ArchiveError):
            archive.read("a/one")
        with pytest.raises(ArchiveError):
            archive.check()
        assert bytes(archive.read("a/three.bin")) == RECORDS["a/three.bin"]


def test_sizes_that_are_not_true_are_not_unpacked() -> None:
    """A record whose headers say 100 bytes and that unpacks to a hundred million."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = packer.compress(bytes(100_000_000)) + packer.flush()
    data = packed({"a": bytes(100)}, zipfile.ZIP_DEFLATED)
    old = data[31 : data.index(b"PK\1\2")]
    lengths = struct.pack("<L", len(old)), struct.pack("<L", len(stream))
    data = data.replace(old, stream, 1).replace(lengths[0], lengths[1], 2)
    end = data.rindex(b"PK\5\6")
    start = struct.pack("<L", data.index(b"PK\1\2"))
    data = data[: end + 16] + start + data[end + 20 :]
    with Archive(data) as archive, pytest.raises(ArchiveError):
        archive.read("a")


def test_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_UNPACKED", 1000)
    Archive(packed({"a": bytes(999)}, zipfile.ZIP_DEFLATED))
    for records in ({"a": bytes(100_000)}, {f"a{i}": bytes(10_000) for i in range(10)}):
        with pytest.raises(ArchiveError, match="would unpack to 100,000"):
            Archive(packed(records, zipfile.ZIP_DEFLATED))
    monkeypatch.setattr(archives, "MOST_RECORDS", 2)
    with pytest.raises(ArchiveError, match="3 records"):
        Archive(packed())
