"""Weights in external data files."""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from onnx import AttributeProto, NodeProto, TensorProto

from dacconv.errors import FormatError
from dacconv.formats.onnx.document import subgraphs
from dacconv.formats.onnx.tensors import Tensor, check_room, inline_head, numpy_dtype

MOST_SHARED = 8
"""How often the bytes of an external data file may be claimed by tensors, on average."""
LARGEST_INLINED = 1 << 30
"""The most bytes of the external tensors that lie in attributes and subgraphs."""


@dataclass(frozen=True, slots=True, eq=False)
class ExternalFiles:
    """The external data files of a model, each mapped into memory once.

    They are mapped and not read, so that a model larger than memory can be converted, and so that
    the weights stay the same if a file is replaced in the meantime.
    """

    model: Path
    mapped: dict[Path, memoryview] = field(default_factory=dict)
    _claims: Counter[Path] = field(default_factory=Counter)
    _inlined: Counter[str] = field(default_factory=Counter)

    def bytes_of(self, proto: TensorProto) -> memoryview:
        """The bytes that an external tensor points to.

        Several tensors may share bytes, as tied weights do, but together they may have at most
        ``MOST_SHARED`` times the bytes of the file: each is written on its own.

        Raises:
            FormatError: the file is missing, too short or outside the model's folder, or is
                claimed too often; the message names the tensor and the file.
        """
        entries = {entry.key: entry.value for entry in proto.external_data}
        location = entries.get("location", "")
        if not isinstance(location, str):  # protobuf gives bytes where they are not UTF-8
            raise self._error(proto.name, repr(location), "whose name is not UTF-8")
        path = self._locate(proto.name, location)
        data = self._map(proto.name, path)
        try:
            offset = int(entries.get("offset", 0))
            length = int(entries["length"]) if "length" in entries else len(data) - offset
        except ValueError as error:
            raise FormatError(
                f"initializer {proto.name!r} states an offset or length that is not a "
                f"number: {entries}",
                where=str(self.model),
            ) from error
        if offset < 0 or length < 0 or offset + length > len(data):
            raise FormatError(
                f"initializer {proto.name!r} needs bytes {offset:,} to {offset + length:,} of its "
                f"external data file {location!r}, which has only {len(data):,}",
                where=str(self.model),
                hint="the data file is truncated or belongs to another model",
            )
        self._claims[path] += length
        if self._claims[path] > MOST_SHARED * len(data):
            raise FormatError(
                f"its tensors claim more than {MOST_SHARED} times the {len(data):,} bytes of the "
                f"external data file {location!r}",
                where=str(self.model),
                hint="tensors that overlap so often are damaged or malicious",
            )
        return data[offset : offset + length]

    def inlined(self, proto: TensorProto) -> bytes:
        """A copy of the bytes that an external tensor points to, for a tensor inside a node.

        Raises:
            FormatError: as :meth:`bytes_of`, or the copies are too large together.
        """
        raw = self.bytes_of(proto)
        self._inlined["bytes"] += len(raw)
        if self._inlined.total() > LARGEST_INLINED:
            raise FormatError(
                f"the external tensors of its attributes and subgraphs have more than "
                f"{LARGEST_INLINED:,} bytes",
                where=str(self.model),
                hint="make them initializers of the main graph",
            )
        return bytes(raw)

    def _locate(self, name: str, location: str) -> Path:
        absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive
        path = self.model.parent / location
        # a download cache may hold the model and its data as links into one other folder
        homes = {self.model.parent.resolve(), self.model.resolve().parent}
        try:
            resolved = path.resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._error(name, location, f"which cannot be resolved ({error})") from error
        inside = any(resolved.is_relative_to(home) for home in homes)
        if not location or absolute or ".." in PurePosixPath(location).parts or not inside:
            raise self._error(
                name, location, "which is outside the model's folder: that is not allowed"
            )
        if not resolved.exists():
            raise self._error(name, location, "which does not exist")
        if not resolved.is_file():
            raise self._error(name, location, "which is not a regular file")
        return resolved

    def _map(self, name: str, path: Path) -> memoryview:
        if path not in self.mapped:
            try:
                with path.open("rb") as stream:
                    empty = not path.stat().st_size
                    self.mapped[path] = memoryview(
                        b"" if empty else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                    )
            except (OSError, ValueError) as error:
                raise self._error(name, path.name, f"which cannot be read ({error})") from error
        return self.mapped[path]

    def _error(self, name: str, location: str, problem: str) -> FormatError:
        return FormatError(
            f"initializer {name!r} has its data in external file {location!r}, {problem}",
            where=str(self.model),
            hint="put the data file beside the model, under the name that the model gives",
        )


def read_tensor(tensor: Tensor, files: ExternalFiles) -> Tensor:
    """The tensor, with its bytes from the external file if it has one."""
    if tensor.head.data_location != TensorProto.EXTERNAL:
        return tensor
    raw = files.bytes_of(tensor.head)
    dtype = numpy_dtype(tensor.data_type)
    if dtype is not None and min(tensor.dims, default=0) >= 0:
        needed = tensor.size * dtype.itemsize
        has_length = any(entry.key == "length" for entry in tensor.head.external_data)
        if len(raw) < needed:
            raise FormatError(
                f"initializer {tensor.name!r} has {len(raw):,} bytes in its external data file "
                f"but its shape {list(tensor.dims)} of {dtype.name} needs {needed:,}",
                where=str(files.model),
                hint="the data file is truncated or belongs to another model",
            )
        raw = raw if has_length else raw[:needed]
    return Tensor(head=tensor.head, raw=raw, external=True)


def inline_nested(nodes: Iterable[NodeProto], files: ExternalFiles) -> None:
    """Bring external tensors of attributes and subgraphs into the nodes, in place.

    They are few and small, and an attribute that points into a file would be lost on saving.

    Raises:
        FormatError: a tensor has more elements than it has data for, or its external data
            cannot be read.
    """
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _inline(attribute.t, files)
            for tensor in attribute.tensors:
                _inline(tensor, files)
        for _, graph in subgraphs(node):
            for tensor in graph.initializer:
                _inline(tensor, files)
            inline_nested(graph.node, files)


def _inline(proto: TensorProto, files: ExternalFiles) -> None:
    if proto.data_location != TensorProto.EXTERNAL:
        check_room(proto.name, proto.dims, proto.ByteSize())
    else:
        raw = files.inlined(proto)
        proto.CopyFrom(inline_head(proto))
        proto.raw_data = raw
