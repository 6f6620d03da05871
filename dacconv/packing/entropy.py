"""Symbols as a range-coded stream (the library ``constriction``), by tables of frequencies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]

Buffer = bytes | bytearray | memoryview

TABLE = 1 << 14
"""What the frequencies of a table add up to: a power of two, so that probabilities are exact."""


class PackedError(ValueError):
    """A packed file that is damaged, contradicts itself, or unpacks to too much."""


def table_of(counts: NDArray[np.intp]) -> I32:
    """Frequencies that add up to ``TABLE``, at least 1 for every symbol that occurs."""
    used = counts > 0
    shares = counts * ((TABLE - int(used.sum())) / max(int(counts.sum()), 1))
    table: I32 = (used + np.floor(shares)).astype(np.int32)
    table[int(table.argmax())] += TABLE - int(table.sum())
    return table


def bits(counts: NDArray[np.intp], table: I32) -> float:
    """The bits that symbols of these counts take when they are coded by a table."""
    used = counts > 0
    return float(-(counts[used] * np.log2(table[used] / TABLE)).sum())


class Encoder:
    """Codes symbols one after the other."""

    def __init__(self) -> None:
        import constriction

        self._coder = constriction.stream.queue.RangeEncoder()

    def add(self, symbols: NDArray[Any], table: I32) -> None:
        """Code whole numbers below the length of the table."""
        self._coder.encode(symbols.astype(np.int32).ravel(), _model(table))

    def data(self) -> bytes:
        """All that was coded."""
        return np.asarray(self._coder.get_compressed(), "<u4").tobytes()


class Decoder:
    """Reads what :class:`Encoder` has coded, with the same tables in the same order.

    Raises:
        PackedError: the data is no whole number of words.
    """

    def __init__(self, data: Buffer) -> None:
        import constriction

        if len(data) % 4:
            raise PackedError("a range-coded stream is cut short")
        words = np.frombuffer(data, "<u4").astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(words)

    def read(self, count: int, table: I32) -> I32:
        """The next ``count`` symbols; PackedError where the data or the table is damaged."""
        if int(table.sum()) != TABLE or int(table.min()) < 0:
            raise PackedError("a table of frequencies is damaged")
        try:
            return np.asarray(self._coder.decode(_model(table), count), np.int32)
        except Exception as error:  # the library has several kinds for damaged data
            raise PackedError(f"a range-coded stream is damaged: {error}") from error


def _model(table: I32) -> Any:
    """The probabilities of a table: exact binary fractions, so the same on every machine.

    A symbol of frequency 0 gets the smallest probability that the library has.
    """
    import constriction

    if len(table) == 1:  # the library takes no fewer than two symbols
        table = np.array([TABLE - 1, 1], np.int32)
    return constriction.stream.model.Categorical(table / np.float64(TABLE), perfect=False)
