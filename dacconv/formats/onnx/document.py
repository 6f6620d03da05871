"""An ONNX model in parts: its nodes, its weights by name, and the rest of its messages."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from dacconv.formats.onnx import wire
from dacconv.formats.onnx.tensors import Buffer, Tensor, value_info

DEFAULT_DOMAINS = frozenset({"", "ai.onnx"})
INPUTS_CARRY_WEIGHTS_BELOW_IR = 4


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A node of the main graph.

    ``name`` is unique, and shown to users. ``op`` is the operator, with its domain unless that is
    ONNX's own. ``reads`` are its inputs and the values that its subgraphs read from the graph
    around them, ``writes`` the values that it computes.
    """

    name: str
    proto: NodeProto
    op: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


def entry_of(name: str, proto: NodeProto) -> Entry:
    """The entry of a node under the name that is shown to users."""
    operator, domain = proto.op_type, proto.domain
    return Entry(
        name=name,
        proto=proto,
        op=operator if domain in DEFAULT_DOMAINS else f"{domain}::{operator}",
        reads=reads(proto),
        writes=tuple(value for value in proto.output if value),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """A model. Its protobuf messages are shared between documents: never change one in place.

    ``header`` is the ModelProto without its graph; ``rest`` the GraphProto without nodes and
    initializers; ``tensors`` the initializers of the main graph in order. ``external`` is
    true when some of them are in external data files, which are ``side_files``. ``notes`` are
    for the reader of a report.
    """

    header: ModelProto
    entries: tuple[Entry, ...]
    tensors: Mapping[str, Tensor]
    rest: GraphProto
    external: bool = False
    notes: tuple[str, ...] = ()
    side_files: tuple[Path, ...] = ()

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators; 0 if the model does not state it."""
        versions = [o.version for o in self.header.opset_import if o.domain in DEFAULT_DOMAINS]
        return int(max(versions, default=0))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the model's outputs."""
        return tuple(value.name for value in self.rest.output)

    @property
    def sparse(self) -> frozenset[str]:
        """The names of the initializers that are stored sparse."""
        return frozenset(tensor.values.name for tensor in self.rest.sparse_initializer)

    def with_notes(self, *notes: str) -> Document:
        """The document with more notes for the reader of a report."""
        return replace(self, notes=self.notes + notes)


def subgraphs(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """The graphs in a node's attributes, each with a unique name."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            for index, graph in enumerate(attribute.graphs):
                yield f"{attribute.name}_{index}", graph


def reads(node: NodeProto) -> tuple[str, ...]:
    """Every value that the node reads, once, in order: inputs, then captures of subgraphs."""
    names = dict.fromkeys(name for name in node.input if name)
    for _, graph in subgraphs(node):
        names.update(dict.fromkeys(captured(graph)))
    return tuple(names)


def captured(graph: GraphProto) -> list[str]:
    """The values that a subgraph reads from the graphs around it."""
    own = {value.name for value in graph.input}
    own |= {tensor.name for tensor in graph.initializer}
    own |= {tensor.values.name for tensor in graph.sparse_initializer}
    outer: dict[str, None] = {}
    for node in graph.node:
        outer.update(dict.fromkeys(name for name in reads(node) if name not in own))
        own.update(node.output)
    outer.update(dict.fromkeys(value.name for value in graph.output if value.name not in own))
    return list(outer)


def first_unsorted(entries: Iterable[Entry], available: Iterable[str]) -> tuple[Entry, str] | None:
    """The first node that reads a value before it is available, with that value."""
    defined = set(available)
    for entry in entries:
        for name in entry.reads:
            if name not in defined:
                return entry, name
        defined.update(entry.writes)
    return None


def initial_values(document: Document) -> set[str]:
    """The values that are available before the first node runs."""
    names = {value.name for value in document.rest.input}
    return names | set(document.tensors) | document.sparse


def value_names(document: Document) -> set[str]:
    """The names of all values, those inside subgraphs among them."""
    names = initial_values(document)
    for entry in document.entries:
        names.update(entry.writes)
    waiting = [graph for entry in document.entries for _, graph in subgraphs(entry.proto)]
    while waiting:
        graph = waiting.pop()
        names.update(tensor.name for tensor in graph.initializer)
        names.update(value.name for value in graph.input)
        for node in graph.node:
            names.update(node.output)
            waiting += [inner for _, inner in subgraphs(node)]
    return names


def with_entries(
    document: Document, entries: Iterable[Entry], added: Mapping[str, Tensor]
) -> Document:
    """The document with other nodes and more constants; its ``rest`` is a copy."""
    rest = GraphProto()
    rest.CopyFrom(document.rest)
    if document.header.ir_version < INPUTS_CARRY_WEIGHTS_BELOW_IR:
        rest.input.extend(value_info(tensor) for tensor in added.values())
    tensors = {**document.tensors, **added}
    return replace(document, entries=tuple(entries), tensors=tensors, rest=rest)


def pieces(
    document: Document, tensors: Iterable[Iterable[Buffer]] | None = None
) -> Iterator[Buffer]:
    """The serialised model, in pieces, with the fields in protobuf's own order.

    ``tensors`` are the serialised initializers; by default all of them with their data inline.
    """
    if tensors is None:
        tensors = (tensor.pieces() for tensor in document.tensors.values())
    graph: list[Buffer] = []
    for entry in document.entries:
        node = entry.proto.SerializeToString(deterministic=True)
        graph += [wire.header(1, len(node)), node]
    before, after = _around(document.rest.SerializeToString(deterministic=True), 5)
    graph.append(before)
    for tensor in tensors:
        parts = list(tensor)
        graph += [wire.header(5, wire.total(parts)), *parts]
    graph.append(after)
    before, after = _around(document.header.SerializeToString(deterministic=True), 7)
    yield before
    yield wire.header(7, wire.total(graph))
    yield from graph
    yield after


def _around(message: bytes, number: int) -> tuple[bytes, bytes]:
    """The fields of a message numbered below ``number``, and those above."""
    view = memoryview(message)
    return wire.only(view, range(1, number)), wire.only(view, range(number + 1, 1 << 29))


_WEIGHT_AT = {
    "Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "BatchNormalization": 1,
    "ConvInteger": 1, "QLinearConv": 3,
}  # fmt: skip
_SUFFIX = re.compile(r"[./_](weight|kernel|w|gamma|scale|weight_quantized)(:\d+)?$", re.IGNORECASE)


def display_names(nodes: Sequence[NodeProto], tensors: Container[str]) -> list[str]:
    """A unique name for each node: its own, its weight's stem, or operator and index."""
    taken: set[str] = set()
    names: list[str | None] = []
    for node in nodes:
        own = node.name if node.name and node.name not in taken else None
        if own:
            taken.add(own)
        names.append(own)
    return [
        name or unique(weight_stem(node, tensors) or f"{node.op_type}_{index}", taken)
        for index, (name, node) in enumerate(zip(names, nodes, strict=True))
    ]


def weight_stem(node: NodeProto, tensors: Container[str]) -> str:
    """``features.0`` for a node whose weight is called ``features.0.weight``, else ``""``."""
    at = _WEIGHT_AT.get(node.op_type)
    if at is None or len(node.input) <= at or node.input[at] not in tensors:
        return ""
    stem, count = _SUFFIX.subn("", node.input[at])
    return stem if count else ""


def unique(name: str, taken: set[str]) -> str:
    """``name``, with a number after it if it is taken; the result is added to ``taken``."""
    candidate, number = name, 1
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    taken.add(candidate)
    return candidate
