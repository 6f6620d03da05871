"""One run through an ONNX graph that stops at chosen convs, in ONNX Runtime.

The nodes between two stops are a model of their own, run once per batch; what later nodes
read is kept, and dropped after its last reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dacconv.formats.base import Feeds, Visit
from dacconv.formats.onnx.consts import Constants
from dacconv.formats.onnx.document import Document, Entry
from dacconv.formats.onnx.part import part_runner
from dacconv.graph.types import Array


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
    run = part_runner(document, constants, entries, live[0], wanted, threads=threads)
    for values in live:
        values.update(run(values))
