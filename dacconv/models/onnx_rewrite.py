"""The one place where an ONNX graph changes: nodes become sums of chains of convolutions."""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, ValueInfoProto, helper

from dacconv.errors import UnsupportedError
from dacconv.models.onnx_consts import Constants
from dacconv.models.onnx_document import (
    DEFAULT_DOMAINS,
    Document,
    Entry,
    first_unsorted,
    givens,
    reads,
    subgraphs,
)
from dacconv.models.onnx_names import unique
from dacconv.models.onnx_operators import CannotEvaluate
from dacconv.models.onnx_shapes import Inferred
from dacconv.models.onnx_tensors import FLOATS, Tensor, from_array, numpy_dtype, value_info
from dacconv.types import Array, Conv, Rewrite

_INPUTS_CARRY_WEIGHTS_BELOW_IR = 4


@dataclass(slots=True, eq=False)
class _Editor:
    """The state of one batch of rewrites."""

    document: Document
    constants: Constants
    inferred: Inferred
    names: set[str]
    values: set[str]
    replaced: dict[int, list[Entry]] = field(default_factory=dict)
    dropped: dict[int, Entry] = field(default_factory=dict)
    added: dict[str, Tensor] = field(default_factory=dict)
    stored: dict[tuple[int, str], str] = field(default_factory=dict)
    kept: list[Array] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)


def rewrite(
    document: Document, constants: Constants, inferred: Inferred, edits: Sequence[Rewrite]
) -> Document:
    """A new document with the edits applied; the old one is untouched.

    The new nodes stand where the target stood. Constants that nothing reads any longer go;
    everything else keeps its name, place and bytes.

    Raises:
        UnsupportedError: an edit does not fit the graph; says which and why.
    """
    taken = {name for entry in document.entries for name in entry.writes} | givens(document)
    taken |= {name for entry in document.entries for name in entry.reads} | _inner(document)
    editor = _Editor(
        document, constants, inferred, {entry.name for entry in document.entries}, taken
    )
    index = {entry.name: at for at, entry in enumerate(document.entries)}
    for edit in edits:
        _apply(editor, edit, index)
    return _result(editor)


def _inner(document: Document) -> set[str]:
    """The values inside subgraphs: a new value must not have the name of one of them."""
    found: set[str] = set()
    waiting = [g for entry in document.entries for _, g in subgraphs(entry.proto)]
    while waiting:
        graph = waiting.pop()
        found.update(tensor.name for tensor in graph.initializer)
        found.update(value.name for value in graph.input)
        for node in graph.node:
            found.update(node.output)
            waiting += [inner for _, inner in subgraphs(node)]
    return found


def _apply(editor: _Editor, edit: Rewrite, index: dict[str, int]) -> None:
    names = dict.fromkeys((edit.target, *edit.drop))
    unknown = [name for name in names if name not in index]
    if unknown:
        raise UnsupportedError(f"cannot rewrite {edit.target}: there is no node {unknown[0]!r}")
    if not edit.branches:
        raise UnsupportedError(f"cannot rewrite {edit.target}: nothing is to take its place")
    gone = [editor.document.entries[index[name]] for name in names]
    for entry in gone:
        if index[entry.name] in editor.dropped:
            raise UnsupportedError(f"two rewrites of one batch replace {entry.name}")
        editor.dropped[index[entry.name]] = entry
    target = gone[0]
    used = [name for name in target.writes[1:] if name in editor.constants.readers]
    if not target.writes or used or set(target.writes[1:]) & set(editor.document.outputs):
        raise UnsupportedError(f"cannot rewrite {edit.target}: it has more than one result")
    gone.sort(key=lambda entry: index[entry.name])
    base, model = target.name, target
    if len(edit.branches) == 1 and len(edit.branches[0]) == 1:
        # a fold: what comes out is still the conv that the user knows
        model = next((entry for entry in gone if entry.op == "Conv"), target)
        base = model.name
    dtype = _dtype(editor, gone, target, edit)
    editor.names.difference_update(name for name in names if name == base)
    editor.replaced[index[target.name]] = _emit(editor, edit, target, model, base, dtype)


def _dtype(
    editor: _Editor, gone: Sequence[Entry], target: Entry, edit: Rewrite
) -> np.dtype[np.generic]:
    """The element type of the new weights: that of what they replace."""
    constants = editor.constants
    by_conv = sorted(gone, key=lambda entry: entry.op != "Conv")
    for entry in by_conv:
        for name in entry.proto.input[1:2] if entry.op == "Conv" else entry.reads:
            if name in constants:
                data_type = constants.data_type(name)
                if data_type is None:
                    try:
                        return constants.value(name).dtype
                    except CannotEvaluate:
                        continue
                dtype = numpy_dtype(data_type)
                if data_type in FLOATS and dtype is not None:
                    return dtype
    data_type = editor.inferred.types.get(target.writes[0])
    dtype = numpy_dtype(data_type) if data_type in FLOATS and data_type is not None else None
    arrays = [conv.weight.dtype for chain in edit.branches for conv in chain]
    return dtype or next(iter(arrays), np.dtype(np.float32))


def _emit(
    editor: _Editor,
    edit: Rewrite,
    target: Entry,
    model: Entry,
    base: str,
    dtype: np.dtype[np.generic],
) -> list[Entry]:
    """The nodes that take the target's place."""
    output = target.writes[0]
    source = edit.source
    if edit.branches == ((),):
        return [_identity(editor, base, source, output)]
    new: list[Entry] = []
    terms: list[str] = []
    several = len(edit.branches) > 1
    for number, chain in enumerate(edit.branches, start=1):
        value = source
        stem = f"{base}_{number}" if several else base
        for step, conv in enumerate(chain):
            name = unique(stem if len(chain) == 1 else f"{stem}_{role(conv)}", editor.names)
            last = step == len(chain) - 1 and not several
            result = output if last else unique(f"{name}_out", editor.values)
            new.append(_conv(editor, name, conv, value, result, dtype, model))
            value = result
        terms.append(value)
    total = terms[0]
    for number, term in enumerate(terms[1:], start=1):
        last = number == len(terms) - 1
        name = unique(f"{base}_sum" if last else f"{base}_sum{number}", editor.names)
        result = output if last else unique(f"{name}_out", editor.values)
        new.append(_entry(helper.make_node("Add", [total, term], [result], name=name), target))
        total = result
    return new


def role(conv: Conv) -> str:
    """What a conv of a chain is called after: ``dw``, ``pw``, or its kernel such as ``3x1``."""
    if all(k == 1 for k in conv.kernel):
        return "pw"
    if conv.groups == conv.in_channels:
        return "dw"
    return "x".join(str(k) for k in conv.kernel)


def _identity(editor: _Editor, base: str, source: str, output: str) -> Entry:
    name = unique(base, editor.names)
    node = helper.make_node("Identity", [source], [output], name=name)
    captured = any(
        output in entry.reads and output not in entry.proto.input
        for entry in editor.constants.readers.get(output, ())
    )
    if output not in editor.document.outputs and not captured:
        editor.aliases[output] = source
    return Entry(name, node, (source,))


def _entry(node: NodeProto, model: Entry) -> Entry:
    """A new node, with what the exporter noted on the node that it stands for."""
    if model.proto.metadata_props:
        node.metadata_props.extend(model.proto.metadata_props)
    node.domain = model.proto.domain if model.proto.domain in DEFAULT_DOMAINS else ""
    return Entry(node.name, node, reads(node))


def _conv(
    editor: _Editor,
    name: str,
    conv: Conv,
    source: str,
    result: str,
    dtype: np.dtype[np.generic],
    model: Entry,
) -> Entry:
    if conv.pad_mode != "zeros":
        raise UnsupportedError(
            f"cannot write {name}: an ONNX Conv has no {conv.pad_mode!r} padding", where=name
        )
    inputs = [source, _store(editor, conv.weight, f"{name}.weight", dtype)]
    if conv.bias is not None:
        inputs.append(_store(editor, conv.bias, f"{name}.bias", dtype))
    attributes: dict[str, Any] = {
        "kernel_shape": list(conv.kernel),
        "strides": list(conv.stride),
        "dilations": list(conv.dilation),
        "group": conv.groups,
    }
    if conv.auto_pad:
        attributes["auto_pad"] = conv.auto_pad
    else:
        attributes["pads"] = [p for p, _ in conv.padding] + [p for _, p in conv.padding]
    return _entry(helper.make_node("Conv", inputs, [result], name=name, **attributes), model)


def _store(editor: _Editor, values: Array, name: str, dtype: np.dtype[np.generic]) -> str:
    """The initializer that holds ``values``; the same array gives the same initializer."""
    key = (id(values), dtype.name)
    if key not in editor.stored:
        with np.errstate(over="ignore"):
            cast = values.astype(dtype, copy=False)
        finite = np.isfinite(cast.astype(np.float32, copy=False) if cast.itemsize < 4 else cast)
        if not finite.all() and np.isfinite(values).all():
            raise UnsupportedError(
                f"the new weights do not fit into {dtype.name}: they overflow",
                where=name.rpartition(".")[0],
                hint="leave this layer out (--skip), or convert the model in float32",
            )
        stored = unique(name, editor.values)
        editor.added[stored] = from_array(stored, cast)
        editor.stored[key] = stored
        editor.kept.append(values)  # an id is only good for as long as its object lives
    return editor.stored[key]


def _result(editor: _Editor) -> Document:
    document = editor.document
    aliases = {name: _follow(editor.aliases, name) for name in editor.aliases}
    entries: list[Entry] = []
    for at, entry in enumerate(document.entries):
        new = editor.replaced.get(at, [] if at in editor.dropped else [entry])
        entries += [
            _renamed(one, aliases) for one in new if not set(one.proto.output) & aliases.keys()
        ]
    tensors = {**document.tensors, **editor.added}
    rest = GraphProto()
    rest.CopyFrom(document.rest)
    if document.header.ir_version < _INPUTS_CARRY_WEIGHTS_BELOW_IR:
        rest.input.extend(value_info(tensor) for tensor in editor.added.values())
    result = replace(document, entries=tuple(entries), tensors=tensors, rest=rest)
    result = _without_dead(result, editor)
    _check(result)
    return result


def _follow(aliases: dict[str, str], name: str) -> str:
    while name in aliases:
        name = aliases[name]
    return name


def _renamed(entry: Entry, aliases: dict[str, str]) -> Entry:
    if not any(name in aliases for name in entry.proto.input):
        return entry
    node = NodeProto()
    node.CopyFrom(entry.proto)
    del node.input[:]
    node.input.extend(aliases.get(name, name) for name in entry.proto.input)
    return Entry(entry.name, node, reads(node))


def _without_dead(document: Document, editor: _Editor) -> Document:
    """Without the constants, and the nodes that make them, that died by these rewrites."""
    uses: dict[str, int] = dict.fromkeys(document.outputs, 1)
    for entry in document.entries:
        for name in entry.reads:
            uses[name] = uses.get(name, 0) + 1
    chained = editor.constants.chained
    dead_nodes: set[int] = set()
    dead_values: set[str] = set()
    waiting = [name for entry in editor.dropped.values() for name in entry.reads]
    while waiting:
        name = waiting.pop()
        if uses.get(name, 0) or name in dead_values:
            continue
        if name in document.tensors:
            dead_values.add(name)
        elif name in chained:
            dead_values.add(name)
            maker = editor.constants.makers[name]
            dead_nodes.add(id(maker))
            for read in maker.reads:
                uses[read] -= 1
                waiting.append(read)
    entries = tuple(entry for entry in document.entries if id(entry) not in dead_nodes)
    tensors = {name: t for name, t in document.tensors.items() if name not in dead_values}
    _prune(document.rest, dead_values, entries, tensors)
    return replace(document, entries=entries, tensors=tensors)


def _prune(
    rest: GraphProto, dead: set[str], entries: Iterable[Entry], tensors: Iterable[str]
) -> None:
    """Remove what the graph says of values that are gone; ``rest`` is ours to change."""
    alive = {name for entry in entries for name in entry.writes} | set(tensors)
    alive |= {value.name for value in rest.input if value.name not in dead}
    _keep(rest.input, {value.name for value in rest.input} - dead)
    _keep(rest.value_info, alive)
    annotations = [a for a in rest.quantization_annotation if a.tensor_name in alive]
    if len(annotations) < len(rest.quantization_annotation):
        copies = [type(a).FromString(a.SerializeToString()) for a in annotations]
        del rest.quantization_annotation[:]
        rest.quantization_annotation.extend(copies)


def _keep(values: MutableSequence[ValueInfoProto], names: set[str]) -> None:
    for at in range(len(values) - 1, -1, -1):
        if values[at].name not in names:
            del values[at]


def _check(document: Document) -> None:
    """Refuse a result in which a node reads what is not there yet."""
    fault = first_unsorted(document.entries, givens(document))
    made = givens(document) | {name for e in document.entries for name in e.writes}
    missing = [name for name in document.outputs if name not in made]
    if fault is not None or missing:
        reader, value = fault if fault is not None else (None, missing[0])
        told = f"{reader.name} still reads it" if reader else "it is an output of the model"
        raise UnsupportedError(
            f"the rewrites do not fit the graph: value {value!r} would be gone, but {told}"
        )
