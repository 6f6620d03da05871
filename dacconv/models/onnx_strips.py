"""The first layers of an ONNX graph in strips of rows, so that large values stay in the cache.

Patch-based inference (MCUNetV2, Lin et al., arXiv 2110.15352, section 3; fused layers, Alwani et
al., MICRO 2016) with patches as wide as the image: the nodes from the input up to where the values
have shrunk are there once for every strip, and a strip passes through all of them before the next
one begins. Neighbouring strips compute the rows twice that both need.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from dacconv.models.base import Stretch
from dacconv.models.onnx_document import Document, Entry, entry_of, value_names, with_entries
from dacconv.models.onnx_geometry import attributes_of, conv_attributes, itemsize
from dacconv.models.onnx_names import unique
from dacconv.models.onnx_prune import prune
from dacconv.models.onnx_roles import Known
from dacconv.models.onnx_tensors import Tensor, from_array

STRIP_BYTES = 2 << 20
"""About the size of the largest value of a strip: one and the next lie in a core's cache."""
SHRUNK = 2
"""Strips end where a value has so many times fewer rows and bytes than one before it."""

_ROWS = 2
"""The axis of the rows in (batch, channels, rows, columns)."""
_SLICE_TAKES_INPUTS_FROM = 10
_BY_ELEMENT = frozenset({
    "Abs", "Add", "BatchNormalization", "Celu", "Clip", "Div", "Elu", "Exp", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "LeakyRelu", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Relu",
    "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tanh", "ThresholdedRelu",
})  # fmt: skip

Rows = tuple[int, int]
"""The first row, and the one after the last."""


@dataclass(frozen=True, slots=True)
class _Window:
    """The rows that one row of a result is made of, and the padding of the columns.

    ``work`` counts the multiply-adds of one row of the result.
    """

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    before: int = 0
    columns: tuple[int, int] = (0, 0)
    work: int = 0

    def of(self, rows: Rows) -> Rows:
        """The rows of the source, those in the padding included."""
        first = rows[0] * self.stride - self.before
        last = (rows[1] - 1) * self.stride - self.before + (self.kernel - 1) * self.dilation
        return first, last + 1


@dataclass(frozen=True, slots=True)
class _Step:
    """A node of the stretch; ``window`` is None where every row is made of the same row."""

    entry: Entry
    sources: tuple[str, ...]
    result: str
    window: _Window | None


@dataclass(frozen=True, slots=True)
class _Found:
    """The nodes of a stretch in order, and how many rows each of its values has.

    ``largest`` is the size of the largest value in bytes.
    """

    steps: tuple[_Step, ...]
    begin: str
    heights: Mapping[str, int]
    largest: int

    @property
    def end(self) -> str:
        """The value that the strips make together."""
        return self.steps[-1].result


def stretch(known: Known, source: str) -> Stretch | None:
    """What of the graph can be run in strips, from its input ``source`` on; None: nothing can.

    Only what the file fixes the sizes of, but for the batch.
    """
    found = _find(known, source)
    if found is None:
        return None
    rows = found.heights[found.end]
    count = min(rows, math.ceil(found.largest / STRIP_BYTES))
    halves = [_all_needed(found, half) for half in ((0, rows // 2), (rows // 2, rows))]
    repeated = 0
    for step in found.steps:
        above, below = (needed[step.result] for needed in halves)
        repeated += max(0, above[1] - below[0]) * (step.window.work if step.window else 0)
    return Stretch(found.begin, found.end, rows, max(count, 1), repeated)


def in_strips(document: Document, known: Known, source: str, count: int) -> Document:
    """The graph with its first stretch in ``count`` strips; the old one is untouched.

    Raises:
        ValueError: there is no such stretch, or it has fewer rows.
    """
    found = _find(known, source)
    rows = found.heights[found.end] if found else 0
    if found is None or not 1 <= count <= rows:
        raise ValueError(f"no {count} strips of {rows} rows")
    names = {entry.name for entry in document.entries}
    values = value_names(document)
    tensors: dict[str, Tensor] = {}
    entries: list[Entry] = []
    parts: list[str] = []
    for number in range(count):
        out = (rows * number // count, rows * (number + 1) // count)
        needed = _all_needed(found, out)
        inside = {value: unique(f"{value}_strip{number + 1}", values) for value in needed}
        begin = (found.begin, inside[found.begin])
        name = unique(f"{found.begin}_strip{number + 1}", names)
        entries.append(_slice(document, name, begin, needed[found.begin], tensors, values))
        for step in found.steps:
            name = unique(f"{step.entry.name}_strip{number + 1}", names)
            entries.append(_copy(step, name, needed, inside, found.heights))
        parts.append(inside[found.end])
    name = unique(f"{found.end}_strips", names)
    join = helper.make_node("Concat", parts, [found.end], name=name, axis=_ROWS)
    entries.append(entry_of(name, join))
    return _replaced(document, {step.entry.name for step in found.steps}, entries, tensors)


def _find(known: Known, source: str) -> _Found | None:
    """The shortest stretch from ``source`` on after which the values have shrunk."""
    constants = known.constants
    outputs = set(constants.document.outputs)
    size = _size(known, source)
    if size is None:
        return None
    batch = known.static.fixed.shapes[source][0] or 1
    heights, steps = {source: size[1]}, list[_Step]()
    largest, done = 0, set[str]()
    for entry in constants.document.entries:
        if all(name in constants for name in entry.writes):
            continue
        step = _step(entry, heights, known)
        size = _size(known, step.result) if step else None
        if step is None or size is None:
            return None
        steps.append(step)
        done.add(entry.name)
        heights[step.result] = size[1]
        each = itemsize(known.inferred.types.get(step.result))
        taken = batch * math.prod(size) * each
        waiting = [
            value
            for value in heights
            if value in outputs or any(r.name not in done for r in constants.readers.get(value, ()))
        ]
        shrunk = SHRUNK * taken <= largest and SHRUNK * size[1] <= max(heights.values())
        if waiting == [step.result] and shrunk and size[1] > 1:
            found = _Found(tuple(steps), source, heights, largest)
            single = [_needed(found, (row, row + 1)) for row in range(size[1])]
            return found if None not in single else None
        largest = max(largest, taken)
    return None


def _size(known: Known, value: str) -> tuple[int, int, int] | None:
    """Channels, rows and columns, where the file fixes them."""
    shape = known.static.fixed.shapes.get(value)
    if shape is None or len(shape) != 4:
        return None
    channels, rows, columns = (size or 0 for size in shape[1:])
    return (channels, rows, columns) if min(channels, rows, columns) > 0 else None


def _step(entry: Entry, heights: Mapping[str, int], known: Known) -> _Step | None:
    """What a node reads row by row; None for one that does not, or that reads other values."""
    reads = [name for name in entry.proto.input if name]
    sources = tuple(name for name in reads if name in heights)
    given = [name for name in reads if name not in heights]
    if (
        len(entry.writes) != 1
        or not sources
        or set(entry.reads) != set(reads)
        or not all(name in known.constants for name in given)
    ):
        return None
    result = entry.writes[0]
    if entry.op in ("Conv", "MaxPool", "AveragePool"):
        window = _window(entry, known)
        return None if window is None else _Step(entry, sources, result, window)
    one_height = len({heights[name] for name in sources}) == 1
    if entry.op == "Concat":
        along = attributes_of(entry).get("axis") in (1, -3)
        return _Step(entry, sources, result, None) if along and not given and one_height else None
    flat = all(_same_for_all_rows(known.dims(name)) for name in given)
    if entry.op in _BY_ELEMENT and one_height and flat:
        return _Step(entry, sources, result, None)
    return None


def _same_for_all_rows(shape: tuple[int, ...] | None) -> bool:
    """Whether a constant of that shape meets every row with the same values."""
    return shape is not None and (len(shape) < 2 or shape[-2] == 1)


def _window(entry: Entry, known: Known) -> _Window | None:
    """The window of a conv or a pooling; None where it is not known, or runtimes differ in it."""
    data, result = _size(known, entry.proto.input[0]), _size(known, entry.writes[0])
    conv, average = entry.op == "Conv", entry.op == "AveragePool"
    given = attributes_of(entry)
    shape = known.dims(entry.proto.input[1]) if conv else (1, 1, *given.get("kernel_shape", ()))
    if data is None or result is None or shape is None or len(shape) != 4:
        return None
    if entry.proto.input[0] in known.constants:
        return None
    found = conv_attributes(entry, shape, data[1:])
    # what lies behind the border of an average counts, or does not, as the runtime likes
    if found.fault or (average and (found.auto_pad or given.get("ceil_mode", 0))):
        return None
    (before, _), columns = found.padding
    work = math.prod(shape) * result[2] if conv else 0
    window = _Window(shape[2], found.stride[0], found.dilation[0], before, columns, work)
    first, last = window.of((result[1] - 1, result[1]))
    # rounded up, the last row of a pooling may be one that runtimes do not agree on
    agreed = first < data[1] and last - data[1] < window.kernel
    return window if conv or agreed else None


def _needed(found: _Found, rows: Rows) -> dict[str, Rows] | None:
    """The rows of every value that ``rows`` of the last one are made of.

    None where two readers need different ones, or one reads nothing but padding.
    """
    needed = {found.end: rows}
    for step in reversed(found.steps):
        wanted = needed[step.result]
        for source in step.sources:
            first, last = step.window.of(wanted) if step.window else wanted
            inner = (max(0, first), min(found.heights[source], last))
            if inner[0] >= inner[1] or needed.setdefault(source, inner) != inner:
                return None
    return needed


def _all_needed(found: _Found, rows: Rows) -> dict[str, Rows]:
    """The same of a stretch in which every single row has been tried."""
    needed = _needed(found, rows)
    assert needed is not None
    return needed


def _copy(
    step: _Step,
    name: str,
    needed: Mapping[str, Rows],
    inside: Mapping[str, str],
    heights: Mapping[str, int],
) -> Entry:
    """The node for one strip: padded where the strip lies at the border of the image."""
    node = NodeProto()
    node.CopyFrom(step.entry.proto)
    node.name = name
    for values in (node.input, node.output):
        renamed = [inside.get(value, value) for value in values]
        del values[:]
        values.extend(renamed)
    if step.window is not None:
        first, last = step.window.of(needed[step.result])
        top, bottom = max(0, -first), max(0, last - heights[step.sources[0]])
        left, right = step.window.columns
        given = step.entry.proto.attribute
        del node.attribute[:]
        node.attribute.extend(a for a in given if a.name not in ("pads", "auto_pad"))
        node.attribute.append(helper.make_attribute("pads", [top, left, bottom, right]))
    return entry_of(name, node)


def _slice(
    document: Document,
    name: str,
    value: tuple[str, str],
    rows: Rows,
    tensors: dict[str, Tensor],
    values: set[str],
) -> Entry:
    """The node that takes ``rows`` of a value; ``value`` is its name, and that of the result."""
    if document.opset < _SLICE_TAKES_INPUTS_FROM:
        node = helper.make_node(
            "Slice", [value[0]], [value[1]], name=name, starts=[rows[0]], ends=[rows[1]],
            axes=[_ROWS],
        )  # fmt: skip
        return entry_of(name, node)
    given = []
    for what, number in zip(("begin", "end", "axis"), (*rows, _ROWS), strict=True):
        stored = unique(f"{name}.{what}", values)
        tensors[stored] = from_array(stored, np.asarray([number], np.int64))
        given.append(stored)
    return entry_of(name, helper.make_node("Slice", [value[0], *given], [value[1]], name=name))


def _replaced(
    document: Document, gone: set[str], new: Sequence[Entry], tensors: Mapping[str, Tensor]
) -> Document:
    """The graph with ``new`` where the last of the nodes ``gone`` stood."""
    last = max(at for at, entry in enumerate(document.entries) if entry.name in gone)

    def entries() -> Iterator[Entry]:
        for at, entry in enumerate(document.entries):
            if entry.name not in gone:
                yield entry
            if at == last:
                yield from new

    made = with_entries(document, entries(), tensors)
    alive = {name for entry in made.entries for name in entry.writes}
    prune(made.rest, set(), alive | set(made.tensors))
    return made
