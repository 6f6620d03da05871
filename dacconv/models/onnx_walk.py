"""One run through an ONNX graph that stops at chosen convs, in ONNX Runtime.

The nodes between two stops are a model of their own, run once per batch; what later nodes
read is kept, and dropped after its last reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, ValueInfoProto, helper

from dacconv.errors import UnsupportedError
from dacconv.models.base import Feeds, Visit
from dacconv.models.onnx_consts import Constants
from dacconv.models.onnx_document import Document, Entry
from dacconv.models.onnx_run import document_session, runner
from dacconv.models.onnx_tensors import onnx_dtype
from dacconv.types import Array


def walk(
    document: Document,
    constants: Constants,
    nodes: Sequence[str],
    visit: Visit,
    batches: Sequence[Feeds],
    *,
    threads: int | None = None,
) -> list[dict[str, Array]]:
    """See ``Model.walk``.

    Raises:
        UnsupportedError: the runtime rejects a part of the model; says what it said.
    """
    outputs = document.outputs
    live: list[dict[str, Array]] = [dict(feeds) for feeds in batches]
    stages = list(_stages(document, constants, frozenset(nodes)))
    last_read = {name: len(stages) for name in outputs}
    for index, (between, stop) in reversed(list(enumerate(stages))):
        for entry in (*between, *([stop] if stop else [])):
            for name in entry.reads:
                last_read.setdefault(name, index)
    for index, (between, stop) in enumerate(stages):
        needed = {name for name, last in last_read.items() if last > index}
        if stop is not None:
            needed |= set(stop.reads)
        _run(document, constants, between, needed, live, threads)
        if stop is not None:
            source, result = stop.proto.input[0], stop.proto.output[0]
            xs = [values[source] for values in live]
            for values, x, y in zip(live, xs, visit(stop.name, xs), strict=True):
                values[result] = np.asarray(y, dtype=x.dtype)
        for values in live:
            for name in [n for n in values if last_read.get(n, -1) <= index]:
                del values[name]
    fixed = {name: constants.value(name) for name in outputs if name in constants}
    return [{n: fixed[n] if n in fixed else values[n] for n in outputs} for values in live]


def _stages(
    document: Document, constants: Constants, stops: frozenset[str]
) -> Iterator[tuple[list[Entry], Entry | None]]:
    """The nodes before each stop with the stop, and those after the last one."""
    between: list[Entry] = []
    for entry in document.entries:
        if entry.writes and entry.writes[0] in constants.chained:
            continue
        if entry.name in stops:
            yield between, entry
            between = []
        else:
            between.append(entry)
    yield between, None


def _run(
    document: Document,
    constants: Constants,
    entries: Sequence[Entry],
    needed: set[str],
    live: list[dict[str, Array]],
    threads: int | None,
) -> None:
    """Run some nodes on every batch; put what is needed of their values into ``live``."""
    made = {name for entry in entries for name in entry.writes}
    wanted = sorted(made & needed)
    if not wanted:
        return
    read = dict.fromkeys(name for entry in entries for name in entry.reads)
    chain = {id(e): e for name in read for e in constants.chain(name)}
    body = (*chain.values(), *entries)
    reads = {name for entry in body for name in entry.reads}
    given = [name for name in live[0] if name in reads]
    part = Document(
        header=_header(document.header),
        entries=body,
        tensors={n: t for n, t in document.tensors.items() if n in reads},
        rest=_frame(document.rest, {n: live[0][n] for n in given}, wanted, reads),
    )
    run = runner(document_session(part, threads=threads))
    for values in live:
        values.update(run(values))


def _header(header: ModelProto) -> ModelProto:
    """The header without training information, which names nodes that a part does not have."""
    made = ModelProto()
    made.CopyFrom(header)
    made.ClearField("training_info")
    return made


def _frame(
    rest: GraphProto, given: dict[str, Array], wanted: Sequence[str], reads: set[str]
) -> GraphProto:
    """Inputs of the types at hand, outputs of whatever type they have."""
    frame = GraphProto(name=rest.name or "part")
    for name, value in given.items():
        if not isinstance(value, np.ndarray):
            raise UnsupportedError(f"value '{name}' is a {type(value).__name__}, not a tensor")
        sizes = [None] * value.ndim
        frame.input.append(helper.make_tensor_value_info(name, onnx_dtype(value.dtype), sizes))
    frame.output.extend(ValueInfoProto(name=name) for name in wanted)
    frame.sparse_initializer.extend(t for t in rest.sparse_initializer if t.values.name in reads)
    return frame
