"""Where the float tensors of torch.save's and safetensors' files lie.

Pickles are read with an unpickler for which every class and function is an empty stand-in, so that
nothing of the file is run. A file that cannot be read so has no spans: it is then packed as bytes.
"""

from __future__ import annotations

import json
import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from dacconv.formats.sniff import LEGACY_MAGIC
from dacconv.formats.spans import (
    WIDTHS,
    Checksum,
    ModelFile,
    Span,
    disjoint,
    is_contiguous,
    storage_spans,
)
from dacconv.support.archives import Archive

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
}
_OTHER_WIDTHS = {
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
}
_SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MOST_PICKLE = 256 << 20
_MOST_DEPTH = 6


class _Storage(NamedTuple):
    kind: str
    key: str
    numbers: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def model_files(path: Path) -> tuple[ModelFile, ...]:
    """The file with its float tensors; with no spans where it cannot be read."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(len(LEGACY_MAGIC))
        stream.seek(0)
        try:
            if start[:2] == b"PK":
                return (_zipped(path, stream),)
            spans = _legacy(stream) if start == LEGACY_MAGIC else _safetensors(stream)
        except Exception:  # damage shows as almost any exception of an unpickler
            spans = []
    return (ModelFile(path, path.name, disjoint(spans, size)),)


def archive_checksums(archive: Archive) -> tuple[Checksum, ...]:
    """The checksums of the records that are stored as they are."""
    return tuple(
        Checksum(entry.start, entry.size, entry.checksums)
        for entry in archive.records.values()
        if entry.stored
    )


def _zipped(path: Path, stream: IO[bytes]) -> ModelFile:
    with Archive(stream) as archive:
        checksums = archive_checksums(archive)
        try:
            spans = _records(archive)
        except Exception:  # as above
            spans = []
        return ModelFile(path, path.name, disjoint(spans, archive.size), checksums)


def _records(archive: Archive) -> list[Span]:
    import io

    (pickled,) = [name for name in archive.records if name.endswith("/data.pkl")]
    folder = pickled.removesuffix("data.pkl")
    order = archive.records.get(f"{folder}byteorder")
    if order is not None and bytes(archive.read(order.name, 16)) != b"little":
        return []
    reader = _Reader(io.BytesIO(archive.read(pickled, _MOST_PICKLE)))
    content = reader.load()
    starts = {}
    for storage in reader.storages:
        entry = archive.records.get(f"{folder}data/{storage.key}")
        if entry is not None and entry.stored and storage.kind in _STORAGES:
            width = WIDTHS[_STORAGES[storage.kind]]
            if entry.size == storage.numbers * width:
                starts[storage] = entry.start
    return _spans(starts, _named(content, reader.tensors))


def _legacy(stream: IO[bytes]) -> list[Span]:
    """The format before PyTorch 1.6: pickles, then every storage as its length and its bytes."""
    for _ in range(3):  # magic number, protocol, facts about the system
        facts = _Reader(stream).load()
    if not isinstance(facts, dict) or not facts.get("little_endian", True):
        return []
    reader = _Reader(stream)
    content = reader.load()
    keys = _Reader(stream).load()
    by_key = {storage.key: storage for storage in reader.storages}
    starts, at = {}, stream.tell()
    for key in keys:
        storage = by_key[key]
        stream.seek(at)
        count = int.from_bytes(stream.read(8), "little")
        dtype = _STORAGES.get(storage.kind)
        width = _OTHER_WIDTHS.get(storage.kind) if dtype is None else WIDTHS[dtype]
        if width is None or count != storage.numbers:
            break  # the places of those behind it are not known
        if dtype is not None:
            starts[storage] = at + 8
        at += 8 + count * width
    return _spans(starts, _named(content, reader.tensors))


def _spans(starts: Mapping[_Storage, int], tensors: Mapping[str, _Tensor]) -> list[Span]:
    inside: dict[_Storage, dict[str, _Tensor]] = {storage: {} for storage in starts}
    for name, tensor in tensors.items():
        if tensor.storage in inside:
            inside[tensor.storage][name] = tensor
    spans: list[Span] = []
    for storage, start in starts.items():
        mine = inside[storage]
        plain = all(is_contiguous(t.shape, t.strides) for t in mine.values())
        places = {name: (t.offset, t.shape) for name, t in mine.items()} if plain else {}
        spans += storage_spans(start, storage.numbers, _STORAGES[storage.kind], places)
    return spans


def _safetensors(stream: IO[bytes]) -> list[Span]:
    length = int.from_bytes(stream.read(8), "little")
    header = json.loads(stream.read(min(length, 100_000_000)))
    spans = []
    for name, entry in header.items():
        dtype = _SAFETENSORS.get(entry.get("dtype", ""))
        if name != "__metadata__" and dtype is not None:
            shape = tuple(int(size) for size in entry["shape"])
            begin, end = entry["data_offsets"]
            if end - begin == math.prod(shape) * WIDTHS[dtype]:
                spans.append(Span(name, 8 + length + begin, math.prod(shape), dtype, shape))
    return spans


class _Reader(pickle.Unpickler):
    """Reads a pickle of tensors with stand-ins: it notes the tensors, and builds nothing.

    The classes are made for each file, since a pickle may set attributes on them.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream, encoding="utf-8")
        self.storages: dict[_Storage, None] = {}
        self.tensors: list[_Tensor] = []

        class StandIn(dict[Any, Any]):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__()

            def __setstate__(self, state: Any) -> None:
                if isinstance(state, dict):
                    self.update(state)

            def __call__(self, *args: Any, **kwargs: Any) -> StandIn:
                return StandIn()

            def append(self, value: Any) -> None:
                """A pickled list's item."""

            def extend(self, values: Any) -> None:
                """A pickled list's items."""

            def add(self, value: Any) -> None:
                """A pickled set's item."""

        self._stand_in = StandIn

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for whatever is named."""
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return self._rebuild
        if module == "torch._utils" and name.startswith("_rebuild_parameter"):
            return lambda data, *others: data
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if name in _STORAGES or name in _OTHER_WIDTHS:
            return name
        return self._stand_in

    def persistent_load(self, identity: Any) -> _Storage:
        """The storage that a pickle refers to."""
        mark, kind, key, _, count = identity[:5]
        if mark != "storage" or (len(identity) > 5 and identity[5] is not None):
            raise pickle.UnpicklingError("an unknown kind of storage")
        storage = _Storage(kind if isinstance(kind, str) else "", str(key), int(count))
        self.storages[storage] = None
        return storage

    def _rebuild(self, storage: Any, offset: Any, shape: Any, strides: Any, *others: Any) -> Any:
        sizes, steps = (tuple(int(each) for each in values) for values in (shape, strides))
        tensor = _Tensor(storage, int(offset), sizes, steps)
        self.tensors.append(tensor)
        return tensor


def _named(content: Any, tensors: list[_Tensor]) -> dict[str, _Tensor]:
    """The tensors by their keys in the nested dicts of a file; the others by numbers."""
    names: dict[int, str] = {}
    seen: set[int] = set()

    def walk(value: Any, prefix: str, depth: int) -> None:
        if isinstance(value, _Tensor):
            names.setdefault(id(value), prefix)
        elif depth and isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))
            for key, item in value.items():
                walk(item, f"{prefix}.{key}" if prefix else str(key), depth - 1)

    walk(content, "", _MOST_DEPTH)
    return {names.get(id(tensor), f"#{i}"): tensor for i, tensor in enumerate(tensors)}
