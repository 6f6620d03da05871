"""Run a model, or parts of it, in ONNX Runtime, which is imported only then."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, ValueInfoProto, helper

from dacconv.errors import UnsupportedError
from dacconv.formats.base import Feeds, Runner, Visit
from dacconv.formats.onnx.constants import Constants
from dacconv.formats.onnx.document import Document, Entry, pieces
from dacconv.formats.onnx.save import INLINE_LIMIT, inline_size, write_with_data
from dacconv.formats.onnx.tensors import onnx_dtype
from dacconv.graph.types import Array


def session(
    model: bytes | str | Path,
    *,
    threads: int | None = None,
    optimise: bool = True,
    spin: bool = False,
    profile: str | None = None,
) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU.

    Threads do not spin while they wait, so that two live sessions do not starve each other;
    with ``spin`` they do, as they would in use, but not between runs. ``profile`` is the prefix
    of the path to which a profile is written.
    ``optimise=False`` runs the graph as it is written; without that, ONNX Runtime fuses
    conv and BatchNormalization by itself.

    Raises:
        UnsupportedError: ONNX Runtime rejects the model; the message quotes it.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise UnsupportedError(
            "onnxruntime is not installed, so the model cannot be run",
            hint="pip install onnxruntime, or leave the check out with --no-verify",
        ) from error
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.inter_op_num_threads = 1
    if threads:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1" if spin else "0")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, bytes) else str(model)
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common type of their own
        raise refusal("does not take the model", error) from error


def runtime() -> str:
    """The runtime's name and version."""
    try:
        import onnxruntime as ort
    except ImportError:
        return "onnxruntime (not installed)"
    return f"onnxruntime {ort.__version__}"


def refusal(what: str, error: Exception) -> UnsupportedError:
    """The error that quotes the runtime."""
    message = " ".join(str(error).split()) or type(error).__name__
    return UnsupportedError(
        f"ONNX Runtime {what}: {message}",
        hint="if the model runs elsewhere, leave the check out with --no-verify",
    )


def document_session(document: Document, **options: Any) -> Any:
    """A session on a document, from memory, or from a temporary file when it is too large.

    ``options`` are those of :func:`session`.
    """
    if inline_size(document) <= INLINE_LIMIT:
        return session(b"".join(pieces(document)), **options)
    with tempfile.TemporaryDirectory(prefix="dacconv-") as folder:
        path = Path(folder) / "model.onnx"
        write_with_data(document, path)
        return session(path, **options)


def runner(session_: Any) -> Runner:
    """A function that runs a session, from inputs by name to outputs by name."""
    inputs = [value.name for value in session_.get_inputs()]
    outputs = [value.name for value in session_.get_outputs()]

    def run(feeds: Feeds) -> dict[str, Array]:
        missing = [name for name in inputs if name not in feeds]
        if missing:
            raise UnsupportedError(f"the model's input {missing[0]!r} is missing")
        try:
            results = session_.run(None, {name: np.asarray(feeds[name]) for name in inputs})
        except Exception as error:
            raise refusal("cannot run the model", error) from error
        return _named(outputs, results)

    return run


def _named(names: Sequence[str], results: Sequence[Any]) -> dict[str, Array]:
    outputs: Mapping[str, Any] = dict(zip(names, results, strict=True))
    for name, value in outputs.items():
        if not isinstance(value, np.ndarray):
            raise UnsupportedError(f"output {name!r} is a {type(value).__name__}, not a tensor")
    return dict(outputs)


def part_runner(
    document: Document,
    constants: Constants,
    entries: Sequence[Entry],
    examples: Mapping[str, Array],
    outputs: Sequence[str],
    *,
    threads: int | None = None,
) -> Runner:
    """A function that runs ``entries``, which are in order of execution, as a model.

    ``examples`` are example values of its inputs, for their types; those that no node reads are
    left out. ``outputs`` are the names of the values that it returns. The part contains the
    constants that it reads.

    Raises:
        UnsupportedError: the runtime rejects the part; the message quotes it.
    """
    read = dict.fromkeys(name for entry in entries for name in entry.reads)
    chain = {id(e): e for name in read if name not in examples for e in constants.chain(name)}
    body = (*chain.values(), *(entry for entry in entries if id(entry) not in chain))
    reads = {name for entry in body for name in entry.reads}
    inputs = {name: value for name, value in examples.items() if name in reads}
    part = Document(
        header=_header(document.header),
        entries=body,
        tensors={n: t for n, t in document.tensors.items() if n in reads},
        rest=_frame(document.rest, inputs, outputs, reads),
    )
    return runner(document_session(part, threads=threads))


def live(document: Document, constants: Constants, node: str) -> tuple[str, ...]:
    """The values from before ``node`` that it, what follows it or the outputs read."""
    at = next(i for i, entry in enumerate(document.entries) if entry.name == node)
    computed = {name for entry in document.entries[at:] for name in entry.writes}
    read = dict.fromkeys(name for entry in document.entries[at:] for name in entry.reads)
    needed = (*read, *document.outputs)
    return tuple(dict.fromkeys(n for n in needed if n not in computed and n not in constants))


def resume(
    document: Document,
    constants: Constants,
    values: Mapping[str, Array],
    outputs: Sequence[str],
    *,
    threads: int | None = None,
) -> Runner:
    """A function that computes ``outputs`` from values such as ``values``, and nothing else.

    Raises:
        UnsupportedError: an input of the model is needed that is not among ``values``, or the
            runtime rejects the part.
    """
    computed = [name for name in outputs if name not in values and name not in constants]
    pending, needed = list(computed), set[str]()
    entries: dict[int, Entry] = {}
    while pending:
        name = pending.pop()
        if name in needed or name in values or name in constants:
            continue
        needed.add(name)
        producer = constants.producers.get(name)
        if producer is None:
            raise UnsupportedError(f"value '{name}' is neither given nor computed")
        entries[id(producer)] = producer
        pending += producer.reads
    ordered = [entry for entry in document.entries if id(entry) in entries]
    fixed = {name: constants.value(name) for name in outputs if name in constants}
    run: Runner | None = None
    if computed:
        run = part_runner(document, constants, ordered, values, computed, threads=threads)

    def call(feeds: Feeds) -> dict[str, Array]:
        available = {**feeds, **fixed, **(run(feeds) if run else {})}
        return {name: available[name] for name in outputs}

    return call


def _header(header: ModelProto) -> ModelProto:
    """The header without training information, which names nodes that a part does not have."""
    copy = ModelProto()
    copy.CopyFrom(header)
    copy.ClearField("training_info")
    return copy


def _frame(
    rest: GraphProto, inputs: Mapping[str, Array], outputs: Sequence[str], reads: set[str]
) -> GraphProto:
    """A graph without nodes: inputs of the types of ``inputs``, outputs of no stated type."""
    frame = GraphProto(name=rest.name or "part")
    for name, value in inputs.items():
        if not isinstance(value, np.ndarray):
            raise UnsupportedError(f"value '{name}' is a {type(value).__name__}, not a tensor")
        sizes = [None] * value.ndim
        frame.input.append(helper.make_tensor_value_info(name, onnx_dtype(value.dtype), sizes))
    frame.output.extend(ValueInfoProto(name=name) for name in outputs)
    frame.sparse_initializer.extend(t for t in rest.sparse_initializer if t.values.name in reads)
    return frame


def walk(
    document: Document,
    constants: Constants,
    nodes: Sequence[str],
    visit: Visit,
    batches: Sequence[Feeds],
    *,
    threads: int | None = None,
) -> list[dict[str, Array]]:
    """Run the graph once, in parts, with ``visit`` in the place of the convs ``nodes``.

    The nodes between two of these convs are a model of their own, run once per batch. A value
    is freed after its last reader. See :class:`dacconv.formats.base.Walkable`.

    Raises:
        UnsupportedError: the runtime rejects a part of the model; the message quotes it.
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
        if entry.writes and entry.writes[0] in constants.computed:
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
    """Run some nodes on every batch; add the needed ones of their values to ``live``."""
    outputs = sorted(needed.intersection(name for entry in entries for name in entry.writes))
    if not outputs:
        return
    run = part_runner(document, constants, entries, live[0], outputs, threads=threads)
    for values in live:
        values.update(run(values))
