"""Tensors of few different values: what they are made of, and how they are entropy-coded.

A number is a level times the scale of its row and the scale of its column. Which level it is, is
coded by a range coder (``constriction``) with a table of frequencies for each class of numbers. The
classes follow from how large the numbers of the row and of the column are on average: levels far
from zero are common in some rows and rare in others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dacconv.formats.spans import WIDTHS
from dacconv.graph.types import Array
from dacconv.packing.entropy import Buffer, Decoder, Encoder, PackedError, bits, table_of
from dacconv.packing.squeeze import expand, squeeze

MOST_LEVELS = 1 << 12
MOST_CLASSES = 16
MOST_SIDE = 16 << 20
"""Bytes of side information, unpacked, beyond four times the bytes of the tensors."""
_QUARTERS = np.array([1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429], np.float32)
_CLASS_COUNTS = (1, 2, 4, 8, MOST_CLASSES)
_MOST_STEPS = 127

I32 = NDArray[np.int32]
I8 = NDArray[np.int8]


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """A tensor as a matrix of indices into a list of levels.

    A number at row ``i`` and column ``j`` of ``indices`` ``(rows, columns)`` is ``multiples[k] *
    step * 2 ** (row_steps[i] / 4) * 2 ** (column_steps[j // n] / 4)`` in float32, for the index
    ``k`` and ``n`` columns per column step.
    """

    indices: I32
    step: float
    multiples: I32
    row_steps: I8
    column_steps: I8

    def values(self, dtype: str) -> Array:
        """The numbers, ``(rows, columns)``; the same bits on every machine."""
        columns = np.repeat(self.column_steps, self.indices.shape[1] // len(self.column_steps))
        with np.errstate(all="ignore"):
            levels = self.multiples.astype(np.float32) * np.float32(self.step)
            values = levels[self.indices] * scales(self.row_steps)[:, None] * scales(columns)
            return values.astype(dtype_of(dtype))


def scales(steps: I8) -> Array:
    """``2 ** (steps / 4)`` in float32."""
    whole = steps.astype(np.int32)
    return np.ldexp(_QUARTERS[whole % 4], whole // 4)


def nearest_steps(values: Array) -> I8:
    """The steps whose scales are nearest to positive numbers; 0 for the others."""
    positive = np.where((values > 0) & np.isfinite(values), values, 1.0)
    steps = np.rint(4 * np.log2(positive))
    return np.asarray(np.clip(steps, -_MOST_STEPS, _MOST_STEPS), np.int8)


def dtype_of(name: str) -> Any:
    """The numpy dtype of a span's dtype, which numpy itself does not know for bfloat16."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name).newbyteorder("<")


def to_levels(tensors: Sequence[tuple[Levels, str]]) -> tuple[dict[str, Any], bytes]:
    """Tensors with their dtypes as one stream: the codec's parameters and its data."""
    coder = Encoder()
    facts, sides = [], []
    for levels, dtype in tensors:
        classes, tables = _best_classes(levels)
        rows, columns = levels.indices.shape
        groups, count, size = len(levels.column_steps), len(classes.bounds) + 1, len(tables[0])
        facts.append([dtype, rows, columns, groups, size, count])
        sides.append(_side(levels, classes, tables))
        for number, table in enumerate(tables):
            symbols = levels.indices[classes.of_elements(columns) == number]
            coder.add(symbols, table)
    side = squeeze(b"".join(part for parts in zip(*sides, strict=True) for part in parts))
    words = coder.data()
    length = sum(len(part) for parts in sides for part in parts)
    return {"tensors": facts, "side": [len(side), length]}, side + words


def from_levels(facts: Mapping[str, Any], data: Buffer, lengths: Sequence[int]) -> list[bytes]:
    """The bytes of the tensors of :func:`to_levels`, which have these ``lengths``.

    Raises:
        PackedError: the parameters or the data are damaged.
    """
    heads = [_head(entry) for entry in facts["tensors"]]
    if [head.length for head in heads] != list(lengths):
        raise PackedError("rounded tensors do not fit their places")
    packed, length = facts["side"]
    view = memoryview(data)
    if type(packed) is not int or not 0 <= packed <= len(view):
        raise PackedError("the data of rounded tensors is damaged")
    if length != sum(sum(head.parts) for head in heads):
        raise PackedError("the side information of rounded tensors has another length")
    if length > MOST_SIDE + 4 * sum(lengths):
        raise PackedError("the side information of rounded tensors is larger than it may be")
    sides = _split(heads, expand(view[:packed], length))
    decoder = Decoder(view[packed:])
    result = []
    for head, side in zip(heads, sides, strict=True):
        levels, classes, tables = _read_side(head, side)
        of_elements = classes.of_elements(head.columns)
        indices = np.zeros((head.rows, head.columns), np.int32)
        for number, table in enumerate(tables):
            places = of_elements == number
            indices[places] = decoder.read(int(places.sum()), table)
        whole = Levels(indices, levels.step, levels.multiples, levels.row_steps,
                       levels.column_steps)  # fmt: skip
        result.append(whole.values(head.dtype).tobytes())
    return result


@dataclass(frozen=True, slots=True, eq=False)
class _Classes:
    """The class of a number: how many ``bounds`` are not above the sum of its row's and column's.

    ``rows`` and ``columns`` are logarithms of mean magnitudes, in eighths of an octave.
    """

    rows: I8
    columns: I8
    bounds: NDArray[np.int16]

    def of_elements(self, columns: int) -> NDArray[np.intp]:
        """The classes of all numbers, ``(rows, columns)``."""
        repeated = np.repeat(self.columns, columns // len(self.columns)).astype(np.int16)
        sums = self.rows.astype(np.int16)[:, None] + repeated
        return np.searchsorted(self.bounds, sums, side="right")


@dataclass(frozen=True, slots=True)
class _Head:
    """The sizes of a tensor, checked."""

    dtype: str
    rows: int
    columns: int
    groups: int
    levels: int
    classes: int

    @property
    def length(self) -> int:
        return self.rows * self.columns * WIDTHS[self.dtype]

    @property
    def parts(self) -> tuple[int, ...]:
        """The lengths of the pieces of its side information."""
        several = self.classes > 1
        return (
            4,
            4 * self.levels,
            self.rows,
            self.groups,
            self.rows * several,
            self.groups * several,
            2 * (self.classes - 1),
            2 * self.levels * self.classes,
        )


def _head(entry: Any) -> _Head:
    dtype, *sizes = entry
    whole = all(type(size) is int and size > 0 for size in sizes)
    if dtype not in WIDTHS or len(sizes) != 5 or not whole:
        raise PackedError("the sizes of a rounded tensor are damaged")
    head = _Head(dtype, *sizes)
    if head.levels > MOST_LEVELS or head.classes > MOST_CLASSES or head.columns % head.groups:
        raise PackedError("a rounded tensor has more levels or classes than there may be")
    return head


def _best_classes(levels: Levels) -> tuple[_Classes, list[I32]]:
    """The classes that take the fewest bits together with their tables."""
    best: tuple[float, _Classes, list[I32]] | None = None
    full = _magnitudes(levels)
    for count in _CLASS_COUNTS:
        classes = _with_classes(full, levels.indices.shape[1], count)
        of_elements = classes.of_elements(levels.indices.shape[1])
        size = len(levels.multiples)
        counts = [
            np.bincount(levels.indices[of_elements == number].ravel(), minlength=size)
            for number in range(len(classes.bounds) + 1)
        ]
        tables = [table_of(each) for each in counts]
        total = sum(bits(each, table) for each, table in zip(counts, tables, strict=True))
        total += sum(8 * int((table > 0).sum()) for table in tables)
        total += 5 * (len(classes.rows) + len(classes.columns)) if count > 1 else 0
        if best is None or total < best[0]:
            best = total, classes, tables
    assert best is not None
    return best[1], best[2]


def _magnitudes(levels: Levels) -> _Classes:
    zero = int(np.abs(levels.multiples).argmin())
    sizes = np.abs(levels.indices - zero) + 0.15
    rows = sizes.mean(axis=1)
    columns = sizes.reshape(len(rows), len(levels.column_steps), -1).mean(axis=(0, 2))
    logs = [np.rint(8 * np.log2(each / sizes.mean())) for each in (rows, columns)]
    clipped = [np.clip(each, -_MOST_STEPS, _MOST_STEPS).astype(np.int8) for each in logs]
    return _Classes(clipped[0], clipped[1], np.zeros(0, np.int16))


def _with_classes(full: _Classes, columns: int, count: int) -> _Classes:
    """About ``count`` classes of equally many numbers."""
    repeated = np.repeat(full.columns, columns // len(full.columns)).astype(np.int16)
    sums = np.sort((full.rows.astype(np.int16)[:, None] + repeated).ravel())
    places = [sums[len(sums) * k // count] for k in range(1, count)]
    bounds = np.unique(np.array([b for b in places if b > sums[0]], np.int16))
    return _Classes(full.rows, full.columns, bounds)


def _side(levels: Levels, classes: _Classes, tables: Sequence[I32]) -> tuple[bytes, ...]:
    """The pieces that ``_Head.parts`` lists; each kind of piece is compressed together."""
    several = len(tables) > 1
    steps = np.diff(levels.multiples, prepend=np.int32(0))
    return (
        np.array([levels.step], "<f4").tobytes(),
        steps.astype("<i4").tobytes(),
        levels.row_steps.tobytes(),
        levels.column_steps.tobytes(),
        classes.rows.tobytes() if several else b"",
        classes.columns.tobytes() if several else b"",
        classes.bounds.astype("<i2").tobytes(),
        np.ascontiguousarray(np.stack(tables).astype("<u2").view(np.uint8).reshape(-1, 2).T)
        .tobytes(),
    )  # fmt: skip


def _split(heads: Sequence[_Head], side: bytes) -> list[list[bytes]]:
    """The pieces of every tensor; in the data all first pieces come first."""
    result: list[list[bytes]] = [[] for _ in heads]
    at = 0
    for number in range(len(heads[0].parts) if heads else 0):
        for pieces, head in zip(result, heads, strict=True):
            length = head.parts[number]
            pieces.append(side[at : at + length])
            at += length
    return result


def _read_side(head: _Head, pieces: Sequence[bytes]) -> tuple[Levels, _Classes, list[I32]]:
    step, steps, rows, columns, row_classes, column_classes, bounds, tables = pieces
    multiples = np.cumsum(np.frombuffer(steps, "<i4"), dtype=np.int64)
    value = float(np.frombuffer(step, "<f4")[0])
    if not math.isfinite(value) or np.abs(multiples).max() >= 1 << 24:
        raise PackedError("the levels of a rounded tensor are damaged")
    levels = Levels(
        np.zeros((0, 0), np.int32),
        value,
        multiples.astype(np.int32),
        np.frombuffer(rows, np.int8),
        np.frombuffer(columns, np.int8),
    )
    classes = _Classes(
        np.frombuffer(row_classes, np.int8) if row_classes else np.zeros(head.rows, np.int8),
        np.frombuffer(column_classes, np.int8)
        if column_classes
        else np.zeros(head.groups, np.int8),
        np.frombuffer(bounds, "<i2").astype(np.int16),
    )
    halves = np.frombuffer(tables, np.uint8).reshape(2, -1).T
    numbers = np.ascontiguousarray(halves).view("<u2").reshape(head.classes, head.levels)
    frequencies = numbers.astype(np.int32)
    if (np.diff(classes.bounds) <= 0).any():
        raise PackedError("the tables of a rounded tensor are damaged")
    return levels, classes, list(frequencies)
