"""Remove the parts of an ONNX graph that nothing reads after a rewrite."""

from __future__ import annotations

from collections.abc import Container, Iterable, MutableSequence
from dataclasses import replace

from onnx import GraphProto, ValueInfoProto

from dacconv.formats.onnx.document import Document, Entry, initial_values, with_entries
from dacconv.formats.onnx.fixed_sizes import FixedSizes
from dacconv.formats.onnx.tensors import Tensor, from_array


def without_dead(document: Document, sizes: FixedSizes, dropped: Iterable[Entry]) -> Document:
    """The document without the constants, and their nodes, that only ``dropped`` nodes read.

    ``sizes`` are those of the graph before the rewrite. ``document.rest`` is changed in place.
    A value that nothing read before the rewrite stays.
    """
    constants, removable = sizes.constants, sizes.removable
    uses: dict[str, int] = dict.fromkeys(document.outputs, 1)
    for entry in document.entries:
        for name in entry.reads:
            uses[name] = uses.get(name, 0) + 1
    dead_nodes: set[int] = set()
    dead: set[str] = set()
    pending = [name for entry in dropped for name in entry.reads]
    while pending:
        name = pending.pop()
        if uses.get(name, 0) > 0 or name in dead:
            continue
        if name in document.tensors:
            dead.add(name)
        elif name in constants.computed or name in removable:
            dead.add(name)
            producer = constants.producers[name]
            dead_nodes.add(id(producer))
            for read in producer.reads:
                uses[read] = uses.get(read, 0) - 1
                pending.append(read)
    entries = tuple(entry for entry in document.entries if id(entry) not in dead_nodes)
    tensors = {name: t for name, t in document.tensors.items() if name not in dead}
    prune(document.rest, dead, {name for e in entries for name in e.writes} | set(tensors))
    return replace(document, entries=entries, tensors=tensors)


def with_fixed_sizes(document: Document, sizes: FixedSizes, resized: Container[str]) -> Document:
    """The document with the size as a constant for Shape nodes of removed or resized values.

    ``document`` is the graph after a rewrite; its ``rest`` is changed in place. ``sizes`` are
    those of the graph before, ``resized`` the values that have another size now.
    """
    available = initial_values(document) | {
        name for entry in document.entries for name in entry.writes
    }
    lost: set[str] = set()  # values computed from removed values, of which only the size is used
    replacements: dict[str, Tensor] = {}
    for entry in document.entries:
        before = sizes.constants.producers.get(entry.writes[0]) if entry.writes else None
        if entry.name not in sizes.size_only or before is None:
            continue
        removed = any(name not in available or name in lost for name in entry.reads)
        if removed and entry.op != "Shape":
            lost.update(entry.writes)
        elif entry.op == "Shape" and (removed or before.reads[0] in resized):
            replacements[entry.writes[0]] = from_array(entry.writes[0], sizes.size(before))
    if not replacements and not lost and not resized:
        return document
    entries = tuple(
        e for e in document.entries if not e.writes or e.writes[0] not in lost | replacements.keys()
    )
    alive = {name for entry in entries for name in entry.writes}
    stale = [v.name for v in document.rest.value_info if v.name in resized]
    _keep(document.rest.value_info, alive.difference(stale))
    return with_entries(document, entries, replacements)


def prune(rest: GraphProto, dead: set[str], alive: set[str]) -> None:
    """Remove, in place, ``dead`` inputs and the types and annotations of removed values."""
    inputs = {value.name for value in rest.input} - dead
    _keep(rest.input, inputs)
    _keep(rest.value_info, alive | inputs)
    annotations = rest.quantization_annotation
    for at in range(len(annotations) - 1, -1, -1):
        if annotations[at].tensor_name not in alive | inputs:
            del annotations[at]


def _keep(values: MutableSequence[ValueInfoProto], names: set[str]) -> None:
    for at in range(len(values) - 1, -1, -1):
        if values[at].name not in names:
            del values[at]
