"""Arrays in .npy and .npz files; their sizes are known before anything is unpacked."""

from __future__ import annotations

import io
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dacconv.support.archives import Archive

LONGEST_HEADER = 1 << 16


@dataclass(frozen=True, slots=True)
class Header:
    """The header of an array; ``start`` is the offset of its bytes in the file or record."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self, data: bytes | bytearray) -> npt.NDArray[Any]:
        """The array whose bytes begin at ``start`` of ``data``; it shares the memory."""
        flat = np.frombuffer(data, self.dtype, math.prod(self.shape), self.start)
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


class ArrayFile:
    """The arrays of a ``.npy`` file (one, without a name) or ``.npz`` file; nothing is unpickled.

    Raises:
        ValueError: it is neither, is damaged, holds objects, or is too large when unpacked.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("not a regular file")
        with path.open("rb") as stream:
            self.zipped = stream.read(2) == b"PK"
        self.headers: Mapping[str, Header] = self._in_archive() if self.zipped else self._alone()

    def read(self, name: str) -> npt.NDArray[Any]:
        """The array of that name; read-only if it comes from a ``.npy`` file."""
        header = self.headers[name]
        if self.zipped:
            with Archive(self.path) as archive:
                return header.array(archive.read(f"{name}.npy"))
        return header.array(self.path.read_bytes())

    def _alone(self) -> dict[str, Header]:
        with self.path.open("rb") as stream:
            head = stream.read(LONGEST_HEADER)
        return {"": _header(head, self.path.stat().st_size)}

    def _in_archive(self) -> dict[str, Header]:
        with Archive(self.path) as archive:
            return {
                name.removesuffix(".npy"): _header(archive.start(name, LONGEST_HEADER), entry.size)
                for name, entry in archive.records.items()
                if name.endswith(".npy")
            }


def _header(head: bytes, length: int) -> Header:
    """The header of an array file of ``length`` bytes; ValueError where it does not fit."""
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"an array of version {version[0]}.{version[1]} of the format")
        shape, fortran, dtype = read(stream)
    except Exception as error:  # numpy's parser of headers raises almost any
        raise ValueError(f"its header is damaged: {error}") from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which would have to be unpickled")
    header = Header(tuple(shape), dtype, fortran, stream.tell())
    if any(size < 0 for size in shape) or header.start + header.size != length:
        raise ValueError(f"its header declares {header.size:,} bytes, which it does not have")
    return header
