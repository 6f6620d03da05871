"""The container: what was put in comes out, and a hostile file is refused within its limits."""

from __future__ import annotations

import hashlib
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dacconv.errors import FormatError
from dacconv.formats.spans import ModelFile, Span
from dacconv.packing import container
from dacconv.packing.container import MAGIC, from_bytes, is_plain_name, to_bytes
from dacconv.packing.entropy import PackedError
from dacconv.packing.packing import pack, unpack
from dacconv.packing.squeeze import expand, squeeze


def packed_bytes(tmp_path=None, contents: bytes = bytes(range(256)) * 5) -> bytes:
    from pathlib import Path

    spans = (Span("w", 8, 64, "float32", (8, 8)), Span("b", 300, 10, "float16", (10,)))
    files = [ModelFile(Path("net.onnx"), "net.onnx", spans), ModelFile(Path("d"), "sub/net.data")]
    return to_bytes(pack("onnx", files, [contents, b"external"]))


def with_header(change) -> bytes:
    """A packed file whose header was changed by ``change``, its checksums made right again."""
    data = packed_bytes()
    size, length = (int.from_bytes(data[at : at + 8], "little") for at in (8, 16))
    header = json.loads(expand(data[24 : 24 + size], length))
    result = change(header)
    text = json.dumps(header if result is None else result).encode()
    return sealed(text, data[24 + size : -32])


def sealed(text: bytes, rest: bytes, length: int | None = None) -> bytes:
    head = squeeze(text)
    lengths = len(head).to_bytes(8, "little") + (length or len(text)).to_bytes(8, "little")
    body = MAGIC + lengths + head + rest
    return body + hashlib.sha256(body).digest()


def test_it_comes_back() -> None:
    packed, contents = unpack(packed_bytes(), "net.dcz")
    assert [file.name for file in packed.files] == ["net.onnx", "sub/net.data"]
    assert contents == (bytes(range(256)) * 5, b"external")
    assert unpack(with_header(lambda header: None), "net.dcz")[1] == contents


@given(st.binary(max_size=200))
def test_other_bytes_are_refused(data: bytes) -> None:
    for each in (data, MAGIC + data, MAGIC + data + hashlib.sha256(MAGIC + data).digest()):
        with pytest.raises(PackedError):
            from_bytes(each)


@given(st.data())
def test_a_file_that_is_cut_or_flipped_is_refused(data) -> None:
    whole = packed_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    for damaged in (whole[:at], bytes(flipped), whole + b"x"):
        with pytest.raises(FormatError, match="not a packed model that can be unpacked"):
            unpack(damaged, "net.dcz")


@given(st.data())
def test_damage_behind_a_right_checksum_is_refused_too(data) -> None:
    """Whoever makes a hostile file computes its checksum as well."""
    whole = bytearray(packed_bytes()[:-32])
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(8, len(whole) - 1))] = data.draw(st.integers(0, 255))
    original = unpack(packed_bytes(), "")[1]
    try:
        _, contents = unpack(bytes(whole) + hashlib.sha256(whole).digest(), "net.dcz")
    except FormatError:
        return
    assert contents == original


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "codec", "size", "ranges"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.sampled_from(["version", "kind", "about", "files", "streams", "rest"]), JSON)
def test_any_other_value_in_the_header_is_refused(key: str, value) -> None:
    def change(header) -> None:
        header[key] = value

    try:
        unpack(with_header(change), "net.dcz")
    except FormatError:
        return
    assert key in ("about", "kind") or (key, value) == ("version", 1)


@given(st.integers(0, 1), st.integers(0, 4), JSON)
def test_any_other_value_of_a_stream_is_refused(stream: int, which: int, value) -> None:
    key = ("codec", "ranges", "size", "width", "planes")[which]

    def change(header) -> bool:
        same = header["streams"][stream][key] == value
        header["streams"][stream][key] = value
        return None if not same else header

    original = unpack(packed_bytes(), "")[1]
    try:
        _, contents = unpack(with_header(change), "net.dcz")
    except FormatError:
        return
    assert contents == original


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../net", "a/../b", "/etc/passwd", "C:\\net", "c:net", "a\\b", "a//b", "a/",
     "a\0b", "a\nb", "x" * 300, "a/" * 600 + "b", "\u202enet", 7, None],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(name) -> None:
    assert not is_plain_name(name)

    def change(header) -> None:
        header["files"][1][0] = name

    with pytest.raises(FormatError, match="leads out of the folder or is not plain"):
        unpack(with_header(change), "net.dcz")


def test_two_files_of_one_name_are_refused() -> None:
    def change(header) -> None:
        header["files"][1][0] = "NET.onnx"

    with pytest.raises(FormatError, match="two of the same name"):
        unpack(with_header(change), "net.dcz")


def test_streams_that_overlap_are_refused() -> None:
    def change(header) -> None:
        header["streams"][1]["ranges"] = header["streams"][0]["ranges"]

    with pytest.raises(FormatError, match="two streams give the same bytes"):
        unpack(with_header(change), "net.dcz")


def test_a_key_twice_and_nan_are_refused() -> None:
    for text in (b'{"version":1,"version":1}', b'{"version":NaN}', b"[" * 100_000, b"[1]", b"1"):
        with pytest.raises(FormatError):
            unpack(sealed(text, b""), "net.dcz")


@pytest.mark.parametrize("size", [1 << 40, 1 << 62, (256 << 20) + 1])
def test_a_file_that_claims_to_be_huge_takes_no_memory(size: int) -> None:
    def change(header) -> None:
        header["files"][1][1] = size

    data = with_header(change)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="would unpack to"):
            unpack(data, "net.dcz")
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_a_header_that_unpacks_to_too_much_is_refused() -> None:
    bomb = sealed(b" " * (container.MOST_HEADER + 1), b"")
    with pytest.raises(FormatError, match="longer than it may be"):
        unpack(bomb, "net.dcz")
    lying = sealed(b" " * (container.MOST_HEADER + 1), b"", length=100)
    with pytest.raises(FormatError, match="not to 100"):
        unpack(lying, "net.dcz")


def test_what_unpack_would_refuse_is_not_packed(monkeypatch) -> None:
    monkeypatch.setattr(container, "MOST_UNPACKED", 1 << 20)
    with pytest.raises(FormatError, match="decompression bomb"):
        packed_bytes(contents=bytes(4 << 20))
