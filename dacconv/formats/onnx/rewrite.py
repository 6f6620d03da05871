"""The one place where layers of an ONNX graph change: they become sums of chains of convs."""

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
    givens,
    subgraphs,
    unique,
    value_names,
    with_entries,
)
from dacconv.formats.onnx.fixed_sizes import Known, Static
from dacconv.formats.onnx.new_nodes import DType, Store, concatenate, emit, overflows, successor
from dacconv.formats.onnx.operators import CannotEvaluate
from dacconv.formats.onnx.prune import with_fixed_sizes, without_dead
from dacconv.formats.onnx.shapes import Inferred
from dacconv.formats.onnx.tensors import FLOATS, numpy_dtype
from dacconv.graph.types import Conv, Repeat, Rewrite, Step, convs_of

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True, eq=False)
class _Editor:
    """One batch of rewrites on its way: what goes, and what comes in its place.

    ``aliases`` maps values that vanish to those that their readers get instead; ``resized``
    are values that are of another size afterwards.
    """

    document: Document
    constants: Constants
    inferred: Inferred
    static: Static
    index: Mapping[str, int]
    store: Store
    replaced: dict[int, list[Entry]] = field(default_factory=dict)
    dropped: dict[int, Entry] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    resized: set[str] = field(default_factory=set)


def why_not(edit: Rewrite, known: Known) -> str | None:
    """Why an edit cannot be made; None where it can."""
    for conv in convs_of(edit.branches):
        if conv.pad_mode != "zeros":
            return f"an ONNX Conv has no {conv.pad_mode!r} padding"
    editor = _editor(known, set())
    names = dict.fromkeys((edit.target, *edit.drop))
    if (fault := _fault(editor, edit, names)) is not None:
        return fault
    gone = [editor.document.entries[editor.index[name]] for name in names]
    target = editor.document.entries[editor.index[edit.target]]
    dtype = _dtype(editor, gone, target, edit)
    arrays = [a for c in convs_of(edit.branches) for a in (c.weight, c.bias)]
    if any(array is not None and overflows(array, dtype) for array in arrays):
        return f"the merged weights overflow in {dtype.name}"
    return None


def rewrite(document: Document, known: Known, edits: Sequence[Rewrite]) -> Document:
    """A new document with the edits applied; the old one is untouched.

    The new nodes stand where the target stood. Constants that nothing reads any longer go;
    everything else keeps its name, place and bytes.

    Raises:
        UnsupportedError: an edit does not fit the graph; says which and why.
    """
    editor = _editor(known, value_names(document))
    for edit in edits:
        _apply(editor, edit)
    return _result(editor)


def _editor(known: Known, values: set[str]) -> _Editor:
    document = known.constants.document
    index = {entry.name: at for at, entry in enumerate(document.entries)}
    store = Store(names=set(index), values=values)
    return _Editor(document, known.constants, known.inferred, known.static, index, store)


def _apply(editor: _Editor, edit: Rewrite) -> None:
    names = dict.fromkeys((edit.target, *edit.drop))
    fault = _fault(editor, edit, names)
    if fault:
        raise UnsupportedError(f"cannot rewrite {edit.target}: {fault}")
    places = sorted(editor.index[name] for name in names)
    gone = [editor.document.entries[at] for at in places]
    editor.dropped.update(zip(places, gone, strict=True))
    target = editor.document.entries[editor.index[edit.target]]
    # what comes out of a fold is still the layer that the user knows
    fold = len(edit.branches) == 1 and len(edit.branches[0]) == 1
    layer = next((entry for entry in gone if entry.op in _LAYERS), target)
    model = layer if fold or target.op not in _LAYERS else target
    base = model.name
    editor.store.names.discard(base)
    dtype = _dtype(editor, gone, target, edit)
    at = editor.index[target.name]
    editor.replaced[at] = _nodes(editor, edit, target, model, base, dtype)
    for value, other in edit.alias.items():
        _redirect(editor, value, other)
        if editor.constants.makers[value].op == "Pad":
            _note_resized(editor, value)


def _fault(editor: _Editor, edit: Rewrite, names: Mapping[str, object]) -> str | None:
    """Why an edit does not fit the graph."""
    unknown = [name for name in names if name not in editor.index]
    if unknown:
        return f"there is no node {unknown[0]!r}"
    if not edit.branches:
        return "nothing is to take its place"
    twice = [name for name in names if editor.index[name] in editor.dropped]
    if twice:
        return f"two rewrites of one batch replace {twice[0]}"
    target = editor.document.entries[editor.index[edit.target]]
    outputs = editor.document.outputs
    more = [n for n in target.proto.output[1:] if n in editor.constants.readers or n in outputs]
    if not target.proto.output or not target.proto.output[0] or more:
        return "it has more than one result"
    return None


def _dtype(editor: _Editor, gone: Sequence[Entry], target: Entry, edit: Rewrite) -> DType:
    """The element type of the new weights: that of what they replace."""
    constants = editor.constants
    for entry in sorted(gone, key=lambda entry: entry.op not in _LAYERS):
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
    editor: _Editor, edit: Rewrite, target: Entry, model: Entry, base: str, dtype: DType
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
            new += _step(store, step, (name, value, result), dtype, model, flat=flat)
            value = result
        if total:
            last = number == len(edit.branches)
            name = unique(f"{base}_sum" if last else f"{base}_sum{number - 1}", store.names)
            result = output if last else unique(f"{name}_out", store.values)
            # with the operands in this order ONNX Runtime ends a chain before it begins the next,
            # and so holds the depthwise conv's output of one chain at a time
            add = helper.make_node("Add", [value, total], [result], name=name)
            new.append(successor(add, model))
            value = result
        total = value
    return new


def _step(
    store: Store,
    step: Step,
    names: tuple[str, str, str],
    dtype: DType,
    model: Entry,
    *,
    flat: bool,
) -> list[Entry]:
    """The nodes of one step of a chain: its name, the value that it reads, the one it makes."""
    name, source, result = names
    if isinstance(step, Repeat):
        return [concatenate(store, [source] * step.copies, result, name=name, model=model)]
    if isinstance(step, Conv):
        return emit(
            store, step, name=name, source=source, result=result, dtype=dtype, model=model,
            flat=flat,
        )  # fmt: skip
    entries: list[Entry] = []
    values: list[str] = []
    for number, conv in enumerate(step.convs, start=1):
        own = unique(f"{name}_{number}", store.names)
        values.append(unique(f"{own}_out", store.values))
        entries += emit(
            store, conv, name=own, source=source, result=values[-1], dtype=dtype, model=model
        )
    return [*entries, concatenate(store, values, result, name=name, model=model)]


def _suffix(step: Step) -> str:
    """The name of a step after that of its layer: ``dw``, ``pw``, or its kernel as ``3x1``."""
    if isinstance(step, Repeat):
        return "repeat"
    conv = step if isinstance(step, Conv) else step.convs[0]
    if all(k == 1 for k in conv.kernel):
        return "pw"
    if conv.groups == conv.in_channels:
        return "dw"
    return "x".join(str(k) for k in conv.kernel)


def _bypass(editor: _Editor, base: str, source: str, output: str) -> list[Entry]:
    """Nothing at all where readers can be sent to ``source``, else an Identity."""
    if not _must_exist(editor, output):
        editor.aliases[output] = source
        return []
    name = unique(base, editor.store.names)
    node = helper.make_node("Identity", [source], [output], name=name)
    return [entry_of(name, node)]


def _must_exist(editor: _Editor, value: str) -> bool:
    """Whether a value must be there under its own name: an output, or read by a subgraph."""
    readers = editor.constants.readers.get(value, ())
    captured = any(value not in entry.proto.input for entry in readers)
    # a node may read a value both as an input and in a subgraph
    captured = captured or any(next(subgraphs(entry.proto), None) for entry in readers)
    return value in editor.document.outputs or captured


def _note_resized(editor: _Editor, value: str) -> None:
    """A padding goes from before a Transpose: what lies between is smaller now."""
    editor.resized.add(value)
    for entry in editor.constants.readers.get(value, ()):
        if entry.op in ("Transpose", "Identity", "Cast", "Dropout"):
            _note_resized(editor, entry.writes[0])


def _redirect(editor: _Editor, value: str, other: str) -> None:
    maker = editor.constants.makers.get(value)
    if maker is None or editor.index[maker.name] not in editor.dropped:
        raise UnsupportedError(f"cannot redirect the readers of {value!r}: it is not dropped")
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
        entries += [_renamed(one, aliases) for one in new]
    result = with_entries(document, entries, editor.store.tensors)
    result = without_dead(result, editor.static, editor.dropped.values())
    result = with_fixed_sizes(result, editor.static, editor.resized)
    _check(result)
    return result


def _follow(aliases: Mapping[str, str], name: str) -> str:
    for _ in range(len(aliases) + 1):
        if name not in aliases:
            return name
        name = aliases[name]
    raise UnsupportedError(f"cannot redirect the readers of {name!r}: it stands for itself")


def _renamed(entry: Entry, aliases: Mapping[str, str]) -> Entry:
    if not any(name in aliases for name in entry.proto.input):
        return entry
    node = NodeProto()
    node.CopyFrom(entry.proto)
    del node.input[:]
    node.input.extend(aliases.get(name, name) for name in entry.proto.input)
    return entry_of(entry.name, node)


def _check(document: Document) -> None:
    """Refuse a result in which a node reads what is not there yet."""
    made = givens(document) | {name for e in document.entries for name in e.writes}
    fault = first_unsorted(document.entries, givens(document))
    if fault is not None:
        reader, value = fault
        state = "not made yet where" if value in made else "gone, but"
        raise UnsupportedError(
            f"the rewrites do not fit the graph: value {value!r} is {state} {reader.name} reads it"
        )
    missing = [name for name in document.outputs if name not in made]
    if missing:
        raise UnsupportedError(
            f"the rewrites do not fit the graph: {missing[0]!r}, an output of the model, is gone"
        )
