"""Part of an ONNX graph as a model of its own: from values in the middle to values further on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, ValueInfoProto, helper

from dacconv.errors import UnsupportedError
from dacconv.formats.base import Feeds, Runner
from dacconv.formats.onnx.consts import Constants
from dacconv.formats.onnx.document import Document, Entry
from dacconv.formats.onnx.run import document_session, runner
from dacconv.formats.onnx.tensors import onnx_dtype
from dacconv.graph.types import Array


def part_runner(
    document: Document,
    constants: Constants,
    entries: Sequence[Entry],
    given: Mapping[str, Array],
    wanted: Sequence[str],
    *,
    threads: int | None = None,
) -> Runner:
    """Runs ``entries``, in order of execution, as a model that makes ``wanted``.

    ``given`` are values such as it will be fed, for their types; those that nothing reads are
    not asked for. Constants come with the part.

    Raises:
        UnsupportedError: the runtime rejects the part; says what it said.
    """
    read = dict.fromkeys(name for entry in entries for name in entry.reads)
    chain = {id(e): e for name in read if name not in given for e in constants.chain(name)}
    body = (*chain.values(), *(entry for entry in entries if id(entry) not in chain))
    reads = {name for entry in body for name in entry.reads}
    fed = {name: value for name, value in given.items() if name in reads}
    part = Document(
        header=_header(document.header),
        entries=body,
        tensors={n: t for n, t in document.tensors.items() if n in reads},
        rest=_frame(document.rest, fed, wanted, reads),
    )
    return runner(document_session(part, threads=threads))


def live(document: Document, constants: Constants, node: str) -> tuple[str, ...]:
    """The values from before ``node`` that it, what follows it or the outputs read."""
    at = next(i for i, entry in enumerate(document.entries) if entry.name == node)
    made = {name for entry in document.entries[at:] for name in entry.writes}
    read = dict.fromkeys(name for entry in document.entries[at:] for name in entry.reads)
    wanted = (*read, *document.outputs)
    return tuple(dict.fromkeys(n for n in wanted if n not in made and n not in constants))


def resume(
    document: Document,
    constants: Constants,
    given: Mapping[str, Array],
    wanted: Sequence[str],
    *,
    threads: int | None = None,
) -> Runner:
    """Runs what leads from ``given`` to ``wanted``, and nothing else.

    Raises:
        UnsupportedError: an input of the model is needed and not given, or the runtime
            rejects the part.
    """
    asked = [name for name in wanted if name not in given and name not in constants]
    waiting, needed = list(asked), set[str]()
    entries: dict[int, Entry] = {}
    while waiting:
        name = waiting.pop()
        if name in needed or name in given or name in constants:
            continue
        needed.add(name)
        maker = constants.makers.get(name)
        if maker is None:
            raise UnsupportedError(f"value '{name}' is neither given nor made")
        entries[id(maker)] = maker
        waiting += maker.reads
    ordered = [entry for entry in document.entries if id(entry) in entries]
    fixed = {name: constants.value(name) for name in wanted if name in constants}
    run: Runner | None = None
    if asked:
        run = part_runner(document, constants, ordered, given, asked, threads=threads)

    def call(feeds: Feeds) -> dict[str, Array]:
        made = run(feeds) if run else {}
        known = {**fixed, **made}
        return {name: known[name] if name in known else feeds[name] for name in wanted}

    return call


def _header(header: ModelProto) -> ModelProto:
    """The header without training information, which names nodes that a part does not have."""
    made = ModelProto()
    made.CopyFrom(header)
    made.ClearField("training_info")
    return made


def _frame(
    rest: GraphProto, given: Mapping[str, Array], wanted: Sequence[str], reads: set[str]
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
