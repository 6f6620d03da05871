"""The constants of a graph: their values, shapes and types, and the nodes that read them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from onnx import AttributeProto, TensorProto

from dacconv.formats.onnx.document import Document, Entry
from dacconv.formats.onnx.operators import LARGEST, OPERATORS, CannotEvaluate, evaluate
from dacconv.formats.onnx.tensors import FLOATS, numpy_dtype
from dacconv.graph.types import Array

_SMALL = 4096
_WORK = 16
"""Computing a constant may give ``LARGEST`` elements, and this many times those that it reads."""


@dataclass(frozen=True, eq=False)
class Constants:
    """The constants of a document: initializers, Constant nodes, and values computed from them."""

    document: Document
    _cache: dict[str, Array] = field(default_factory=dict)
    _shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _refused: dict[str, str] = field(default_factory=dict)

    @cached_property
    def producers(self) -> dict[str, Entry]:
        """The node that computes each value."""
        return {name: entry for entry in self.document.entries for name in entry.writes}

    @cached_property
    def computed(self) -> frozenset[str]:
        """The values that nodes compute from constants alone."""
        tensors, computed = self.document.tensors, set[str]()
        for entry in self.document.entries:
            supported = entry.op in OPERATORS and len(entry.proto.output) == 1
            if supported and entry.op == "Constant" and not _readable_constant(entry):
                continue
            if supported and all(name in tensors or name in computed for name in entry.reads):
                computed.update(entry.writes)
        return frozenset(computed)

    def __contains__(self, name: object) -> bool:
        return name in self.document.tensors or name in self.computed

    @cached_property
    def readers(self) -> dict[str, list[Entry]]:
        """The nodes that read each value, in order."""
        readers: dict[str, list[Entry]] = {}
        for entry in self.document.entries:
            for name in entry.reads:
                readers.setdefault(name, []).append(entry)
        return readers

    def chain(self, name: str) -> list[Entry]:
        """The nodes that compute constant ``name``, in order; none for an initializer."""
        producers: dict[str, Entry] = {}
        pending = [name]
        while pending:
            value = pending.pop()
            if value in self.computed and value not in producers:
                producers[value] = self.producers[value]
                pending += self.producers[value].reads
        nodes = {id(entry): entry for entry in producers.values()}
        return sorted(nodes.values(), key=lambda entry: self._position[id(entry)])

    @cached_property
    def index(self) -> dict[str, int]:
        """The place of each node, by its name."""
        return {entry.name: at for at, entry in enumerate(self.document.entries)}

    @cached_property
    def _position(self) -> dict[int, int]:
        return {id(entry): index for index, entry in enumerate(self.document.entries)}

    def value(self, name: str) -> Array:
        """The value of a constant, in its own dtype; often a read-only view.

        Raises:
            CannotEvaluate: it is not a constant, or cannot be computed here.
        """
        if name in self.document.tensors:
            return self.document.tensors[name].array()
        if name in self._cache:
            return self._cache[name]
        if name not in self.computed:
            raise CannotEvaluate(f"{name!r} is not a constant")
        if name in self._refused:
            raise CannotEvaluate(self._refused[name])
        try:
            value = self._computed(name)
        except CannotEvaluate as error:
            self._refused[name] = str(error)
            raise
        if value.size <= _SMALL:
            self._cache[name] = value
        return value

    def _computed(self, name: str) -> Array:
        """The value at the end of a chain; an intermediate result is freed after its last use."""
        chain = self.chain(name)
        uses = Counter(value for entry in chain for value in entry.proto.input)
        stored = {v for e in chain for v in e.reads if v in self.document.tensors}
        budget = LARGEST + _WORK * sum(self.document.tensors[value].size for value in stored)
        local: dict[str, Array] = {}
        for entry in chain:
            inputs = [self._input(value, local) for value in entry.proto.input]
            result = evaluate(entry.proto, inputs, budget)
            if entry.op == "Constant":
                budget += _WORK * result.size
            elif not any(x is not None and np.may_share_memory(x, result) for x in inputs):
                budget -= result.size
            if budget < 0:
                raise CannotEvaluate("the constant takes too much computing")
            local[entry.proto.output[0]] = result
            uses.subtract(entry.proto.input)
            for value in {*entry.proto.input} - {name}:
                if not uses[value]:
                    local.pop(value, None)
        return local[name]

    def _input(self, name: str, local: dict[str, Array]) -> Array | None:
        if not name:
            return None
        return local[name] if name in local else self.value(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a constant; reads no weights unless the constant has to be computed."""
        if name in self.document.tensors:
            return self.document.tensors[name].dims
        name = self.identity(name)
        if name in self.document.tensors:
            return self.document.tensors[name].dims
        if name not in self._shapes:
            self._shapes[name] = tuple(self.value(name).shape)
        return self._shapes[name]

    def data_type(self, name: str) -> int | None:
        """The ONNX element type of a constant; None if only its value would show it."""
        while name not in self.document.tensors:
            producer = self.producers.get(name)
            if producer is None or name not in self.computed:
                return None
            attributes = {a.name: a for a in producer.proto.attribute}
            if producer.op == "Cast":
                return int(attributes["to"].i)
            if producer.op == "Constant":
                return _constant_type(attributes)
            if producer.op == "DequantizeLinear":
                name = producer.proto.input[1]
            elif producer.op in ("Shape", "Equal", "ConstantOfShape") or not producer.proto.input:
                return None
            else:
                name = producer.proto.input[0]
        return self.document.tensors[name].data_type

    def roots(self, name: str) -> tuple[str, ...]:
        """The initializers and Constant nodes' values that a constant is computed from."""
        if name in self.document.tensors:
            return (name,)
        roots: dict[str, None] = {}
        for entry in self.chain(name):
            if not entry.reads:
                roots[entry.writes[0]] = None
            roots.update(dict.fromkeys(v for v in entry.reads if v in self.document.tensors))
        return tuple(roots)

    def identity(self, name: str) -> str:
        """The name that identifies a constant: the same behind any number of Identity nodes."""
        while name in self.computed and self.producers[name].op == "Identity":
            name = self.producers[name].proto.input[0]
        return name

    def users(self, name: str) -> list[Entry]:
        """The nodes that read a constant at runtime, directly or by way of a chain of constants.

        Nodes that compute a constant are followed to the nodes that read it.
        """
        users: dict[int, Entry] = {}
        pending, visited = [name], set[str]()
        while pending:
            value = pending.pop()
            if value in visited:
                continue
            visited.add(value)
            for entry in self.readers.get(value, ()):
                if entry.writes and entry.writes[0] in self.computed:
                    pending += entry.writes
                else:
                    users[id(entry)] = entry
        return list(users.values())

    def elements(self, name: str) -> int:
        """The number of floating-point elements of a root, 0 for indices and shapes."""
        tensor = self.document.tensors.get(name)
        if tensor is not None:
            return tensor.size if tensor.data_type in FLOATS else 0
        if self.data_type(name) not in FLOATS:
            return 0
        return math.prod(self.shape(name))

    def small(self, extra: dict[str, Array]) -> dict[str, Array]:
        """Every constant of at most a few thousand elements, with those that follow from ``extra``.

        ``extra`` are values that are not constants but known, such as the result of a Shape node
        whose input has a known shape.
        """
        values: dict[str, Array] = dict(extra)
        for name, tensor in self.document.tensors.items():
            if tensor.size <= _SMALL and numpy_dtype(tensor.data_type) is not None:
                values[name] = tensor.array()
        for entry in self.document.entries:
            if entry.op not in OPERATORS or len(entry.proto.output) != 1:
                continue
            output = entry.proto.output[0]
            if output in values or not all(name in values for name in entry.reads):
                continue
            try:
                value = evaluate(
                    entry.proto, [values.get(name) for name in entry.proto.input], _SMALL
                )
            except CannotEvaluate:
                continue
            if value.size <= _SMALL and value.dtype.kind not in "OSU":
                values[output] = value
        return values


def _readable_constant(entry: Entry) -> bool:
    kinds = {attribute.name for attribute in entry.proto.attribute}
    return bool(kinds & {"value", "value_float", "value_floats", "value_int", "value_ints"})


def _constant_type(attributes: dict[str, AttributeProto]) -> int | None:
    if "value" in attributes:
        return int(attributes["value"].t.data_type)
    if "value_float" in attributes or "value_floats" in attributes:
        return int(TensorProto.FLOAT)
    return int(TensorProto.INT64)


def names_of(entries: Iterable[Entry], limit: int = 3) -> str:
    """The names and operators of the nodes, at most ``limit`` of them."""
    names = [f"{entry.name} ({entry.op})" for entry in entries]
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
