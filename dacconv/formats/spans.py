"""Where the numbers of a model lie in its files, as byte ranges.

Packing (``dacconv.packing``) changes numbers in place and keeps every other byte, so it needs no
more of a format than this: the files of a model, the tensors in them, and the checksums that
must be computed again where a tensor has changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a number, by the dtypes that a span can have."""


@dataclass(frozen=True, slots=True)
class Span:
    """A tensor of floats, stored contiguously and in little-endian order from ``start`` on.

    ``dtype`` is one of ``WIDTHS``. ``shape`` is None where the order of the elements is not known,
    as for a storage that several tensors share. Such a span is compressed, but never rounded.
    """

    name: str
    start: int
    count: int
    dtype: str
    shape: tuple[int, ...] | None = None

    @property
    def length(self) -> int:
        """Its bytes."""
        return self.count * WIDTHS[self.dtype]

    @property
    def end(self) -> int:
        """The place of the first byte behind it."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Checksum:
    """The CRC-32 of ``length`` bytes from ``start`` on, which is stored at the ``places``."""

    start: int
    length: int
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file of a model: where it is, its name relative to the model's folder, and its tensors."""

    path: Path
    name: str
    spans: tuple[Span, ...] = ()
    checksums: tuple[Checksum, ...] = field(default=())


def disjoint(spans: Iterable[Span], size: int) -> tuple[Span, ...]:
    """The spans in order, without those that are empty, overlap an earlier one or pass ``size``."""
    result: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.length)):
        after = not result or span.start >= result[-1].end
        if span.count and after and span.end <= size:
            result.append(span)
    return tuple(result)


def storage_spans(
    start: int, count: int, dtype: str, tensors: Mapping[str, tuple[int, tuple[int, ...]]]
) -> list[Span]:
    """The spans of a storage of ``count`` numbers that holds ``tensors``.

    ``tensors`` maps names to offsets, in elements, and shapes, and has only tensors that are
    contiguous. Where they do not fill the storage without overlap, the storage is one span without
    a shape.
    """
    width = WIDTHS[dtype]
    distinct = {place: name for name, place in reversed(list(tensors.items()))}
    at, spans = 0, []
    for (offset, shape), name in sorted(distinct.items()):
        if offset != at:
            break
        spans.append(Span(name, start + offset * width, math.prod(shape), dtype, shape))
        at += math.prod(shape)
    if at == count:
        return spans
    return [Span(next(iter(tensors), ""), start, count, dtype)]


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether a tensor lies in row-major order without gaps."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
