"""Read an ONNX file in one pass over its bytes, without copying the weights."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, NodeProto

from dacconv.errors import FormatError, UnsupportedError
from dacconv.formats.onnx import wire
from dacconv.formats.onnx.document import (
    Document,
    Entry,
    display_names,
    entry_of,
    first_unsorted,
    initial_values,
    subgraphs,
)
from dacconv.formats.onnx.external import ExternalFiles, inline_nested, read_tensor
from dacconv.formats.onnx.functions import check_functions, inline_conv_functions
from dacconv.formats.onnx.tensors import Tensor, check_room, from_wire, numpy_dtype

OLDEST_OPSET, OLDEST_IR = 7, 3
LARGEST_AXIS = 1 << 40
_GRAPH, _NODE, _INITIALIZER = 7, 1, 5


def read(path: Path) -> Document:
    """Open an ONNX file.

    Raises:
        FormatError: it cannot be read, is damaged, or does not fit its external data.
        UnsupportedError: its IR or opset is too old.
    """
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    if not data:
        raise FormatError("the file is empty", where=str(path))
    try:
        document = document_of(data, path)
    except (wire.WireError, DecodeError, UnicodeError) as error:
        raise FormatError(
            f"not a readable ONNX file: {_description(error)}",
            where=str(path),
            hint="the file is truncated or damaged, or it is of another format",
        ) from error
    except FormatError as error:
        raise FormatError(error.what, where=error.where or str(path), hint=error.hint) from error
    except RecursionError as error:
        raise FormatError(
            "not a readable ONNX file: its graphs are nested too deeply", where=str(path)
        ) from error
    _check_versions(document, path)
    return document


def _description(error: Exception) -> str:
    if isinstance(error, wire.WireError):
        return str(error)
    return "its structure is broken"


def document_of(data: memoryview, path: Path) -> Document:
    """The document of a serialised model; external data is beside ``path``."""
    graph_bytes = _graph_bytes(data)
    header = ModelProto.FromString(wire.without(data, {_GRAPH}))
    parts = GraphProto.FromString(wire.only(graph_bytes, {_NODE}))
    rest = GraphProto.FromString(wire.without(graph_bytes, {_NODE, _INITIALIZER}))
    _check_names(header, parts.node, rest)
    files = ExternalFiles(path)
    tensors: dict[str, Tensor] = {}
    notes: list[str] = []
    for field in wire.fields(graph_bytes):
        if field.number == _INITIALIZER:
            if field.wire_type != wire.DELIMITED:
                raise wire.WireError("one of its initializers is not a message")
            tensor = read_tensor(from_wire(graph_bytes[field.content : field.end]), files)
            _check_tensor(tensor)
            if tensor.name in tensors:
                notes.append(f"initializer {tensor.name!r} occurs twice; the last one counts")
            tensors[tensor.name] = tensor
    check_functions(parts.node, header.functions)
    for function in header.functions:
        inline_nested(function.node, files)
    inline_nested(parts.node, files)
    nodes, function_notes = inline_conv_functions(header, list(parts.node), tensors, rest)
    notes += function_notes
    names = display_names(nodes, tensors)
    entries = tuple(entry_of(name, node) for name, node in zip(names, nodes, strict=True))
    external = any(tensor.external for tensor in tensors.values())
    beside = tuple(files.mapped)
    document = Document(header, entries, tensors, rest, external, tuple(notes), beside)
    _check_values(document)
    return _sorted(document)


def _graph_bytes(data: memoryview) -> memoryview:
    graphs = []
    for field in wire.fields(data):
        if field.number == _GRAPH:
            if field.wire_type != wire.DELIMITED:
                raise wire.WireError("its graph is not a message")
            graphs.append(data[field.content : field.end])
    if not graphs:
        raise FormatError("not an ONNX model: it has no graph")
    # protobuf merges a field that occurs twice
    return graphs[0] if len(graphs) == 1 else memoryview(b"".join(graphs))


def _check_names(header: ModelProto, nodes: Iterable[NodeProto], rest: GraphProto) -> None:
    """Raise FormatError for impossible axes, and for names that are not text.

    Protobuf gives such a name as bytes.
    """
    for values in (rest.input, rest.output, rest.value_info):
        for value in values:
            sizes = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
            if max(sizes, default=0) > LARGEST_AXIS:
                raise FormatError(
                    f"value {value.name!r} has the shape {sizes}; dacconv reads axes of at most "
                    f"{LARGEST_AXIS:,}",
                    hint="the file is damaged",
                )
    texts: list[object] = [o.domain for o in header.opset_import]
    texts += [
        value.name for values in (rest.input, rest.output, rest.value_info) for value in values
    ]
    for node in nodes:
        texts += [node.name, node.op_type, node.domain, *node.input, *node.output]
        texts += [attribute.name for attribute in node.attribute]
        for _, graph in subgraphs(node):
            _check_names(ModelProto(), graph.node, graph)
    if not all(isinstance(text, str) for text in texts):
        raise FormatError(
            "not a readable ONNX file: a name in it is not text", hint="the file is damaged"
        )


def _check_tensor(tensor: Tensor) -> None:
    if not isinstance(tensor.head.name, str):
        raise FormatError("the name of an initializer is not text", hint="the file is damaged")
    if any(size < 0 for size in tensor.dims):
        raise FormatError(f"initializer {tensor.name!r} has a negative size: {list(tensor.dims)}")
    check_room(tensor.name, tensor.dims, tensor.stored)
    dtype = numpy_dtype(tensor.data_type)
    if tensor.raw is None or dtype is None:
        return
    expected = tensor.size * dtype.itemsize
    if len(tensor.raw) != expected:
        raise FormatError(
            f"initializer {tensor.name!r} has {len(tensor.raw):,} bytes, but its shape "
            f"{list(tensor.dims)} of {dtype.name} needs {expected:,}",
            hint="the file is damaged",
        )


def _check_values(document: Document) -> None:
    """Raise FormatError for values that two nodes compute, or that no node computes."""
    counts = Counter(name for entry in document.entries for name in entry.writes)
    available = initial_values(document)
    for name, count in counts.items():
        if count > 1 or name in available:
            raise FormatError(f"value {name!r} is computed twice in the graph")
    available.update(counts)
    for entry in document.entries:
        required = _required_inputs(entry.op, document.opset)
        if not all(entry.proto.input[:required]) or len(entry.proto.input) < required:
            raise FormatError(
                f"node {entry.name!r} ({entry.op}) has fewer inputs than it needs",
                hint="the graph is incomplete or the file is damaged",
            )
        for name in entry.reads:
            if name not in available:
                raise FormatError(
                    f"node {entry.name!r} ({entry.op}) reads value {name!r}, which "
                    "nothing computes",
                    hint="the graph is incomplete or the file is damaged",
                )
    for name in document.outputs:
        if name not in available:
            raise FormatError(
                f"the model's output {name!r} is a value that nothing computes",
                hint="the graph is incomplete or the file is damaged",
            )


@cache
def _required_inputs(op: str, opset: int) -> int:
    """The number of inputs that an operator of ONNX must have; 0 for other operators."""
    opset = max(1, min(opset, onnx.defs.onnx_opset_version()))
    try:
        schema = onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return 0
    required = onnx.defs.OpSchema.FormalParameterOption.Single
    options = [parameter.option == required for parameter in schema.inputs]
    return options.index(False) if False in options else len(options)


def _sorted(document: Document) -> Document:
    """The document with its nodes in topological order, as ONNX requires."""
    if first_unsorted(document.entries, initial_values(document)) is None:
        return document
    entries = _topological(document.entries)
    return replace(document, entries=entries).with_notes(
        "the nodes were not in topological order, which ONNX requires; they were sorted"
    )


def _topological(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    producers = {name: index for index, entry in enumerate(entries) for name in entry.writes}
    waiting_for: list[set[int]] = [
        {producers[name] for name in entry.reads if name in producers} for entry in entries
    ]
    users: dict[int, list[int]] = {}
    for index, required in enumerate(waiting_for):
        for producer in required:
            users.setdefault(producer, []).append(index)
    ready = [index for index, required in enumerate(waiting_for) if not required]
    order: list[Entry] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(entries[index])
        for user in users.get(index, ()):
            waiting_for[user].discard(index)
            if not waiting_for[user]:
                heapq.heappush(ready, user)
    if len(order) < len(entries):
        raise FormatError(
            "the graph has a cycle: some nodes read values that depend on their own outputs"
        )
    return tuple(order)


def _check_versions(document: Document, path: Path) -> None:
    ir, opset = document.header.ir_version, document.opset
    if not document.header.HasField("ir_version"):
        raise FormatError(
            "not an ONNX model, or a damaged one: it does not state its IR version", where=str(path)
        )
    if ir < OLDEST_IR:
        raise UnsupportedError(
            f"ONNX IR version {ir} is too old; {OLDEST_IR} is the oldest that dacconv reads",
            where=str(path),
            hint="export the model again with a current exporter",
        )
    standard = not document.entries or any(
        entry.proto.domain in ("", "ai.onnx") for entry in document.entries
    )
    if not opset and standard:
        raise FormatError(
            "the model does not state its ONNX opset",
            where=str(path),
            hint="the file is truncated or damaged, or its exporter is faulty",
        )
    if standard and opset < OLDEST_OPSET:
        raise UnsupportedError(
            f"opset {opset} is too old; {OLDEST_OPSET} is the oldest that dacconv reads",
            where=str(path),
            hint=f"convert it first: onnx.version_converter.convert_version(model, {13})",
        )


def version_notes(document: Document) -> tuple[str, ...]:
    """A note for the reader of a report where the opset is newer than the installed onnx."""
    newest = onnx.defs.onnx_opset_version()
    if document.opset <= newest:
        return ()
    return (
        f"opset {document.opset} is newer than the newest of the installed onnx "
        f"({newest}); operators may have changed their meaning",
    )
