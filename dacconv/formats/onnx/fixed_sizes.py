"""Values that follow from sizes that the file fixes: Shape nodes and the arithmetic after them.

Exports of slices, reshapes and assignments compute indices from the shapes of values. Where
these are fixed they are constants, and a node that reads a value only for its size does not
depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from dacconv.formats.onnx.constants import Constants
from dacconv.formats.onnx.document import Entry
from dacconv.formats.onnx.geometry import attributes_of
from dacconv.formats.onnx.operators import LARGEST, OPERATORS, CannotEvaluate, evaluate
from dacconv.formats.onnx.shapes import InferredShapes
from dacconv.graph.types import Array, Shape

_TOO_DEEP = 200


@dataclass(frozen=True, eq=False)
class FixedSizes:
    """The values that are fixed by the shapes in the file.

    ``shapes`` are inferred from the file alone, without the input shapes that the user gives.
    """

    constants: Constants
    shapes: InferredShapes
    _values: dict[str, Array] = field(default_factory=dict)

    @cached_property
    def derived(self) -> frozenset[str]:
        """The values that are computed from fixed sizes and constants alone."""
        names: set[str] = set()
        for entry in self.constants.document.entries:
            if len(entry.writes) != 1 or entry.writes[0] in self.constants:
                continue
            constant = all(name in self.constants or name in names for name in entry.reads)
            if self.is_size(entry) or (constant and entry.reads and entry.op in OPERATORS):
                names.add(entry.writes[0])
        return frozenset(names)

    def is_size(self, entry: Entry) -> bool:
        """Whether a node is the Shape of a value whose size is fixed."""
        return entry.op == "Shape" and self.shapes.complete(entry.proto.input[0]) is not None

    @cached_property
    def size_only(self) -> frozenset[str]:
        """The names of the nodes of whose result only the size is used, and of the Shape nodes."""
        names: set[str] = set()
        outputs = set(self.constants.document.outputs)
        for entry in reversed(self.constants.document.entries):
            readers = [r for name in entry.writes for r in self.constants.readers.get(name, ())]
            unread = not readers or outputs & set(entry.writes)
            plain = entry.op in OPERATORS and not unread
            if self.is_size(entry) or (plain and all(r.name in names for r in readers)):
                names.add(entry.name)
        derived = {self.constants.producers[name].name for name in self.derived}
        sizes = {e.name for e in self.constants.document.entries if self.is_size(e)}
        return frozenset(names - derived | sizes)

    @cached_property
    def removable(self) -> frozenset[str]:
        """The values that may be removed once nothing reads them."""
        sizes = self.size_only
        entries = (entry for entry in self.constants.document.entries if entry.name in sizes)
        return self.derived | {name for entry in entries for name in entry.writes}

    def value(self, name: str, depth: int = 0) -> Array:
        """A constant or derived value.

        Raises:
            CannotEvaluate: it is neither, or an operator is not supported.
        """
        if name in self.constants:
            return self.constants.value(name)
        if name in self._values:
            return self._values[name]
        if name not in self.derived or depth > _TOO_DEEP:
            raise CannotEvaluate(f"{name!r} is not fixed")
        entry = self.constants.producers[name]
        if self.is_size(entry):
            value = self.size(entry)
        else:
            inputs = [self.value(v, depth + 1) if v else None for v in entry.proto.input]
            value = evaluate(entry.proto, inputs)
        if value.size + sum(other.size for other in self._values.values()) > LARGEST:
            raise CannotEvaluate("the sizes take too much computing")
        self._values[name] = value
        return value

    def size(self, entry: Entry) -> Array:
        """The output of a Shape node whose input has a fixed size."""
        shape = self.shapes.complete(entry.proto.input[0]) or ()
        attributes = attributes_of(entry)
        return np.asarray(shape[attributes.get("start", 0) : attributes.get("end")], np.int64)


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """The constants, the shapes and the fixed sizes of a graph."""

    constants: Constants
    inferred: InferredShapes
    sizes: FixedSizes

    def input_shape(self, entry: Entry, index: int = 0) -> Shape | None:
        """The shape of one of a node's inputs, as far as it is known."""
        names = entry.proto.input
        return self.inferred.shapes.get(names[index]) if len(names) > index else None

    def output_shape(self, entry: Entry) -> Shape | None:
        """The shape of a node's first output, as far as it is known."""
        return self.inferred.shapes.get(entry.writes[0]) if entry.writes else None

    def dims(self, name: str) -> tuple[int, ...] | None:
        """The shape of a weight, constant or not, when all of it is known."""
        if name in self.constants:
            try:
                return self.constants.shape(name)
            except CannotEvaluate:
                pass
        return self.inferred.complete(name)

    def data_type(self, name: str) -> int | None:
        """The element type of a value."""
        data_type = self.constants.data_type(name) if name in self.constants else None
        return data_type or self.inferred.types.get(name)

    def constant(self, entry: Entry, index: int) -> Array | None:
        """An optional constant input; None if it is left out.

        Raises:
            CannotEvaluate: the node has this input, and it is not a constant.
        """
        names = entry.proto.input
        return self.constants.value(names[index]) if len(names) > index and names[index] else None


def fill_of(entry: Entry, sizes: FixedSizes) -> Mapping[str, Any] | None:
    """The slice along one axis that a ScatterND overwrites with a constant per channel.

    An assignment to ``x[:, :, 0:1, :]`` is exported as this. None for any other ScatterND.
    """
    if attributes_of(entry).get("reduction", "none") != "none":
        return None
    if len(entry.proto.input) != 3:
        return None
    data, places, updates = entry.proto.input
    shape = sizes.shapes.complete(data)
    if shape is None or len(shape) < 3:
        return None
    try:
        index, values = sizes.value(places), sizes.value(updates)
    except CannotEvaluate:
        return None
    if index.shape[-1] != len(shape) or values.size != index.size // len(shape):
        return None
    index = index.reshape(-1, len(shape))
    index = np.where(index < 0, index + np.asarray(shape), index)
    return _slab(index, np.asarray(values, np.float64).reshape(-1), shape)


def _slab(index: Array, values: Array, shape: tuple[int, ...]) -> Mapping[str, Any] | None:
    first, last = index.min(axis=0), index.max(axis=0) + 1
    partly = [axis for axis, size in enumerate(shape) if last[axis] - first[axis] != size]
    flat = np.ravel_multi_index(tuple(index.T), shape)
    dense = len(np.unique(flat)) == len(flat) == np.prod(last - first)
    if len(partly) != 1 or partly[0] < 2 or not dense:
        return None
    border = np.zeros(shape[1])
    border[index[:, 1]] = values
    if not np.array_equal(border[index[:, 1]], values):
        return None
    axis = partly[0]
    return {"axis": axis, "begin": int(first[axis]), "end": int(last[axis]), "value": border}
