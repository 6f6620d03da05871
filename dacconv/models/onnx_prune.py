"""Take out of an ONNX graph what a rewrite has left without a reader."""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence
from dataclasses import replace

from onnx import GraphProto, ValueInfoProto

from dacconv.models.onnx_consts import Constants
from dacconv.models.onnx_document import Document, Entry


def without_dead(document: Document, constants: Constants, dropped: Iterable[Entry]) -> Document:
    """Without the constants, and the nodes that make them, that only ``dropped`` nodes read.

    ``constants`` are those of the graph before. ``document.rest`` is changed in place.
    What was dead before stays: it is not ours to judge.
    """
    uses: dict[str, int] = dict.fromkeys(document.outputs, 1)
    for entry in document.entries:
        for name in entry.reads:
            uses[name] = uses.get(name, 0) + 1
    dead_nodes: set[int] = set()
    dead: set[str] = set()
    waiting = [name for entry in dropped for name in entry.reads]
    while waiting:
        name = waiting.pop()
        if uses.get(name, 0) or name in dead:
            continue
        if name in document.tensors:
            dead.add(name)
        elif name in constants.chained:
            dead.add(name)
            maker = constants.makers[name]
            dead_nodes.add(id(maker))
            for read in maker.reads:
                uses[read] -= 1
                waiting.append(read)
    entries = tuple(entry for entry in document.entries if id(entry) not in dead_nodes)
    tensors = {name: t for name, t in document.tensors.items() if name not in dead}
    _prune(document.rest, dead, {name for e in entries for name in e.writes} | set(tensors))
    return replace(document, entries=entries, tensors=tensors)


def _prune(rest: GraphProto, dead: set[str], alive: set[str]) -> None:
    """Remove what the graph says of values that are gone."""
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
