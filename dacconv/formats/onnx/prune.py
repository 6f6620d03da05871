"""Take out of an ONNX graph what a rewrite has left without a reader."""

from __future__ import annotations

from collections.abc import Container, Iterable, MutableSequence
from dataclasses import replace

from onnx import GraphProto, ValueInfoProto

from dacconv.formats.onnx.document import Document, Entry, givens, with_entries
from dacconv.formats.onnx.fixed_sizes import Static
from dacconv.formats.onnx.tensors import Tensor, from_array


def without_dead(document: Document, static: Static, dropped: Iterable[Entry]) -> Document:
    """Without the constants, and the nodes that make them, that only ``dropped`` nodes read.

    ``static`` is what was known of the graph before. ``document.rest`` is changed in place.
    What was dead before stays: it is not ours to judge.
    """
    constants, removable = static.constants, static.removable
    uses: dict[str, int] = dict.fromkeys(document.outputs, 1)
    for entry in document.entries:
        for name in entry.reads:
            uses[name] = uses.get(name, 0) + 1
    dead_nodes: set[int] = set()
    dead: set[str] = set()
    waiting = [name for entry in dropped for name in entry.reads]
    while waiting:
        name = waiting.pop()
        if uses.get(name, 0) > 0 or name in dead:
            continue
        if name in document.tensors:
            dead.add(name)
        elif name in constants.chained or name in removable:
            dead.add(name)
            maker = constants.makers[name]
            dead_nodes.add(id(maker))
            for read in maker.reads:
                uses[read] = uses.get(read, 0) - 1
                waiting.append(read)
    entries = tuple(entry for entry in document.entries if id(entry) not in dead_nodes)
    tensors = {name: t for name, t in document.tensors.items() if name not in dead}
    prune(document.rest, dead, {name for e in entries for name in e.writes} | set(tensors))
    return replace(document, entries=entries, tensors=tensors)


def with_fixed_sizes(document: Document, static: Static, resized: Container[str]) -> Document:
    """With the size itself in the place of a Shape node whose value is gone or resized.

    ``document`` is the graph after a rewrite, its ``rest`` changed in place; ``static`` is what
    was known of it before, ``resized`` are values of another size than then.
    """
    made = givens(document) | {name for entry in document.entries for name in entry.writes}
    lost: set[str] = set()  # nodes that read what is gone, for its size alone
    sizes: dict[str, Tensor] = {}
    for entry in document.entries:
        before = static.constants.makers.get(entry.writes[0]) if entry.writes else None
        if entry.name not in static.size_only or before is None:
            continue
        gone = any(name not in made or name in lost for name in entry.reads)
        if gone and entry.op != "Shape":
            lost.update(entry.writes)
        elif entry.op == "Shape" and (gone or before.reads[0] in resized):
            sizes[entry.writes[0]] = from_array(entry.writes[0], static.size(before))
    if not sizes and not lost and not resized:
        return document
    entries = tuple(
        e for e in document.entries if not e.writes or e.writes[0] not in lost | sizes.keys()
    )
    alive = {name for entry in entries for name in entry.writes}
    stale = [v.name for v in document.rest.value_info if v.name in resized]
    _keep(document.rest.value_info, alive.difference(stale))
    return with_entries(document, entries, sizes)


def prune(rest: GraphProto, dead: set[str], alive: set[str]) -> None:
    """Remove, in place, what the graph says of values that are gone; ``dead`` inputs go too."""
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
