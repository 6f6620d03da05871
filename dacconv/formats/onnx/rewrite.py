"""Apply rewrites to an ONNX graph: layers become sums of chains of convs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto, helper

from dacconv.errors import UnsupportedError
from dacconv.formats.onnx.constants import Constants
from dacconv.formats.onnx.document import (
    Document,
    Entry,
    entry_of,
    first_unsorted,
    initial_values,
    subgraphs,
    unique,
    value_names,
    with_entries,
)
from dacconv.formats.onnx.fixed_sizes import FixedSizes, GraphFacts
from dacconv.formats.onnx.new_nodes import (
    DType,
    Store,
    concat_node,
    conv_nodes,
    overflows,
    replacement,
)
from dacconv.formats.onnx.operators import CannotEvaluate
from dacconv.formats.onnx.prune import with_fixed_sizes, without_dead
from dacconv.formats.onnx.shapes import InferredShapes
from dacconv.formats.onnx.tensors import FLOATS, numpy_dtype
from dacconv.graph.types import Conv, Repeat, Rewrite, Step, convs_of

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True, eq=False)
class _Editor:
    """A batch of rewrites that is being applied.

    ``index`` maps the name of each node to its place. ``replaced`` maps the place of a target to
    the nodes that take it, ``dropped`` the places of all removed nodes to these. ``aliases`` maps
    removed values to those that their readers read instead; ``resized`` are values whose size
    changes.
    """

    document: Document
    constants: Constants
    inferred: InferredShapes
    sizes: FixedSizes
    index: Mapping[str, int]
    store: Store
    replaced: dict[int, list[Entry]] = field(default_factory=dict)
    dropped: dict[int, Entry] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    resized: set[str] = field(default_factory=set)


def rewrite_refusal(edit: Rewrite, facts: GraphFacts) -> str | None:
    """The reason why an edit cannot be made; None if it can."""
    for conv in convs_of(edit.branches):
        if conv.pad_mode != "zeros":
            return f"an ONNX Conv has no {conv.pad_mode!r} padding"
    editor = _editor(facts, set())
    names = dict.fromkeys((edit.target, *edit.drop))
    if (refusal := _refusal(editor, edit, names)) is not None:
        return refusal
    removed = [editor.document.entries[editor.index[name]] for name in names]
    target = editor.document.entries[editor.index[edit.target]]
    dtype = _dtype(editor, removed, target, edit)
    arrays = [a for c in convs_of(edit.branches) for a in (c.weight, c.bias)]
    if any(array is not None and overflows(array, dtype) for array in arrays):
        return f"the merged weights overflow in {dtype.name}"
    return None


def rewrite(document: Document, facts: GraphFacts, edits: Sequence[Rewrite]) -> Document:
    """A new document with the edits applied; the old one is untouched.

    The new nodes take the place of the target. Constants that nothing reads any longer are
    removed; everything else keeps its name, place and bytes.

    Raises:
        UnsupportedError: an edit does not fit the graph; the message says which and why.
    """
    editor = _editor(facts, value_names(document))
    for edit in edits:
        _apply(editor, edit)
    return _result(editor)


def _editor(facts: GraphFacts, values: set[str]) -> _Editor:
    document, index = facts.constants.document, facts.constants.index
    store = Store(names=set(index) if values else set(), values=values)
    return _Editor(document, facts.constants, facts.inferred, facts.sizes, index, store)


def _apply(editor: _Editor, edit: Rewrite) -> None:
    names = dict.fromkeys((edit.target, *edit.drop))
    refusal = _refusal(editor, edit, names)
    if refusal:
        raise UnsupportedError(f"cannot rewrite {edit.target}: {refusal}")
    places = sorted(editor.index[name] for name in names)
    removed = [editor.document.entries[at] for at in places]
    editor.dropped.update(zip(places, removed, strict=True))
    target = editor.document.entries[editor.index[edit.target]]
    # the result of a fold keeps the name of the layer that the user knows
    is_fold = len(edit.branches) == 1 and len(edit.branches[0]) == 1
    layer = next((entry for entry in removed if entry.op in _LAYERS), target)
    replaced = layer if is_fold or target.op not in _LAYERS else target
    base = replaced.name
    editor.store.names.discard(base)
    dtype = _dtype(editor, removed, target, edit)
    at = editor.index[target.name]
    editor.replaced[at] = _nodes(editor, edit, target, replaced, base, dtype)
    for value, other in edit.alias.items():
        _redirect(editor, value, other)
        if editor.constants.producers[value].op == "Pad":
            _note_resized(editor, value)


def _refusal(editor: _Editor, edit: Rewrite, names: Mapping[str, object]) -> str | None:
    """The reason why an edit does not fit the graph; None if it fits."""
    unknown = [name for name in names if name not in editor.index]
    if unknown:
        return f"there is no node {unknown[0]!r}"
    if not edit.branches:
        return "the edit has no branches to take its place"
    twice = [name for name in names if editor.index[name] in editor.dropped]
    if twice:
        return f"two rewrites of the same batch replace {twice[0]}"
    target = editor.document.entries[editor.index[edit.target]]
    outputs = editor.document.outputs
    extra = [n for n in target.proto.output[1:] if n in editor.constants.readers or n in outputs]
    if not target.proto.output or not target.proto.output[0] or extra:
        return "it has more than one result"
    return None


def _dtype(editor: _Editor, removed: Sequence[Entry], target: Entry, edit: Rewrite) -> DType:
    """The element type of the new weights: that of the weights that they replace."""
    constants = editor.constants
    for entry in sorted(removed, key=lambda entry: entry.op not in _LAYERS):
        for name in entry.proto.input:
            if name not in constants:
                continue
            data_type = constants.data_type(name)
            dtype = numpy_dtype(data_type) if data_type in FLOATS else None
            if data_type is None:
                try:
                    dtype = constants.value(name).dtype
                except CannotEvaluate:
                    continue
            if dtype is not None and dtype.kind in "fV":
                return dtype
    data_type = editor.inferred.types.get(target.writes[0])
    dtype = numpy_dtype(data_type) if data_type in FLOATS else None
    arrays = [conv.weight.dtype for conv in convs_of(edit.branches)]
    return dtype or next(iter(arrays), np.dtype(np.float32))


def _nodes(
    editor: _Editor, edit: Rewrite, target: Entry, replaced: Entry, base: str, dtype: DType
) -> list[Entry]:
    """The nodes that take the target's place."""
    store, output = editor.store, target.writes[0]
    if edit.branches == ((),):
        return _bypass(editor, base, edit.source, output)
    several = len(edit.branches) > 1
    flat = len(editor.inferred.shapes.get(edit.source) or ()) == 2
    new: list[Entry] = []
    total = ""
    for number, chain in enumerate(edit.branches, start=1):
        value = edit.source
        stem = f"{base}_{number}" if several else base
        for place, step in enumerate(chain, start=1):
            last = place == len(chain) and not several
            suffix = "" if len(chain) == 1 else f"_{_suffix(step)}"
            name = unique(f"{stem}{suffix}", store.names)
            result = output if last else unique(f"{name}_out", store.values)
            new += _step(store, step, (name, value, result), dtype, replaced, flat=flat)
            value = result
        if total:
            last = number == len(edit.branches)
            name = unique(f"{base}_sum" if last else f"{base}_sum{number - 1}", store.names)
            result = output if last else unique(f"{name}_out", store.values)
            # in this order of the operands ONNX Runtime runs one chain after the other, and so
            # holds the output of only one depthwise conv at a time
            add = helper.make_node("Add", [value, total], [result], name=name)
            new.append(replacement(add, replaced))
            value = result
        total = value
    return new


def _step(
    store: Store,
    step: Step,
    names: tuple[str, str, str],
    dtype: DType,
    replaced: Entry,
    *,
    flat: bool,
) -> list[Entry]:
    """The nodes of one step of a chain; ``names`` are those of the node, its input and output."""
    name, source, result = names
    if isinstance(step, Repeat):
        return [concat_node(store, [source] * step.copies, result, name=name, replaced=replaced)]
    if isinstance(step, Conv):
        return conv_nodes(
            store, step, name=name, source=source, result=result, dtype=dtype, replaced=replaced,
            flat=flat,
        )  # fmt: skip
    entries: list[Entry] = []
    values: list[str] = []
    for number, conv in enumerate(step.convs, start=1):
        conv_name = unique(f"{name}_{number}", store.names)
        values.append(unique(f"{conv_name}_out", store.values))
        entries += conv_nodes(
            store,
            conv,
            name=conv_name,
            source=source,
            result=values[-1],
            dtype=dtype,
            replaced=replaced,
        )
    return [*entries, concat_node(store, values, result, name=name, replaced=replaced)]


def _suffix(step: Step) -> str:
    """The suffix of a name: ``dw``, ``pw``, ``linear``, ``repeat``, or the kernel as ``3x1``."""
    if isinstance(step, Repeat):
        return "repeat"
    conv = step if isinstance(step, Conv) else step.convs[0]
    if not conv.kernel:
        return "linear"
    if all(k == 1 for k in conv.kernel):
        return "pw"
    if conv.groups == conv.in_channels:
        return "dw"
    return "x".join(str(k) for k in conv.kernel)


def _bypass(editor: _Editor, base: str, source: str, output: str) -> list[Entry]:
    """No node if the readers of ``output`` can read ``source`` instead, else an Identity."""
    if not _must_keep_name(editor, output):
        editor.aliases[output] = source
        return []
    name = unique(base, editor.store.names)
    node = helper.make_node("Identity", [source], [output], name=name)
    return [entry_of(name, node)]


def _must_keep_name(editor: _Editor, value: str) -> bool:
    """Whether a value must keep its name: it is an output, or a subgraph reads it."""
    readers = editor.constants.readers.get(value, ())
    captured = any(value not in entry.proto.input for entry in readers)
    # a node may read a value both as an input and in a subgraph
    captured = captured or any(next(subgraphs(entry.proto), None) for entry in readers)
    return value in editor.document.outputs or captured


def _note_resized(editor: _Editor, value: str) -> None:
    """Note that ``value`` and the values that only move or cast its elements change their size.

    This happens where a padding before a Transpose is removed.
    """
    editor.resized.add(value)
    for entry in editor.constants.readers.get(value, ()):
        if entry.op in ("Transpose", "Identity", "Cast", "Dropout"):
            _note_resized(editor, entry.writes[0])


def _redirect(editor: _Editor, value: str, other: str) -> None:
    maker = editor.constants.producers.get(value)
    if maker is None or editor.index[maker.name] not in editor.dropped:
        raise UnsupportedError(f"cannot redirect the readers of {value!r}: no rewrite drops it")
    at = editor.index[maker.name]
    editor.replaced[at] = [
        *editor.replaced.get(at, []),
        *_bypass(editor, maker.name, other, value),
    ]


def _result(editor: _Editor) -> Document:
    document = editor.document
    aliases = {name: _follow(editor.aliases, name) for name in editor.aliases}
    entries: list[Entry] = []
    for at, entry in enumerate(document.entries):
        new = editor.replaced.get(at, [] if at in editor.dropped else [entry])
        entries += [_renamed(entry, aliases) for entry in new]
    result = with_entries(document, entries, editor.store.tensors)
    result = without_dead(result, editor.sizes, editor.dropped.values())
    result = with_fixed_sizes(result, editor.sizes, editor.resized)
    _check(result)
    return result


def _follow(aliases: Mapping[str, str], name: str) -> str:
    for _ in range(len(aliases) + 1):
        if name not in aliases:
            return name
        name = aliases[name]
    raise UnsupportedError(f"cannot redirect the readers of {name!r}: it is replaced by itself")


def _renamed(entry: Entry, aliases: Mapping[str, str]) -> Entry:
    if not any(name in aliases for name in entry.proto.input):
        return entry
    node = NodeProto()
    node.CopyFrom(entry.proto)
    del node.input[:]
    node.input.extend(aliases.get(name, name) for name in entry.proto.input)
    return entry_of(entry.name, node)


def _check(document: Document) -> None:
    """Raise UnsupportedError where a node of the result reads a value before it is computed."""
    available = initial_values(document) | {name for e in document.entries for name in e.writes}
    unsorted = first_unsorted(document.entries, initial_values(document))
    if unsorted is not None:
        reader, value = unsorted
        state = "computed only after" if value in available else "removed, but"
        raise UnsupportedError(
            f"the rewrites do not fit the graph: value {value!r} is {state} {reader.name} reads it"
        )
    missing = [name for name in document.outputs if name not in available]
    if missing:
        raise UnsupportedError(
            f"the rewrites do not fit the graph: {missing[0]!r}, an output of the model, is removed"
        )
