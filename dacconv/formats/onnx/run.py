"""ONNX Runtime, imported only when a model is run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dacconv.errors import UnsupportedError
from dacconv.formats.base import Feeds, Runner
from dacconv.formats.onnx.document import Document, pieces
from dacconv.formats.onnx.save import INLINE_LIMIT, inline_size, write
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
    with ``spin`` they do, as they would in use, but never between runs. ``profile`` is where a
    profile is written to.
    ``optimise=False`` runs the graph as it is written; without that, ONNX Runtime fuses
    conv and BatchNormalization by itself.

    Raises:
        UnsupportedError: ONNX Runtime rejects the model; says what it said.
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
    given = model if isinstance(model, bytes) else str(model)
    try:
        return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
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
    """What the runtime said, as the user's message."""
    said = " ".join(str(error).split()) or type(error).__name__
    return UnsupportedError(
        f"ONNX Runtime {what}: {said}",
        hint="if it runs elsewhere, leave the check out with --no-verify",
    )


def document_session(document: Document, **options: Any) -> Any:
    """A session on a document, from memory, or from a temporary file when it is too large.

    ``options`` are those of :func:`session`.
    """
    if inline_size(document) <= INLINE_LIMIT:
        return session(b"".join(pieces(document)), **options)
    with tempfile.TemporaryDirectory(prefix="dacconv-") as folder:
        path = Path(folder) / "model.onnx"
        with path.open("wb") as stream, path.with_name("model.onnx.data").open("wb") as side:
            write(document, stream, side, "model.onnx.data")
        return session(path, **options)


def runner(session_: Any) -> Runner:
    """A function that feeds a session and names its outputs."""
    wanted = [value.name for value in session_.get_inputs()]
    outputs = [value.name for value in session_.get_outputs()]

    def run(feeds: Feeds) -> dict[str, Array]:
        missing = [name for name in wanted if name not in feeds]
        if missing:
            raise UnsupportedError(f"the model's input {missing[0]!r} was not given")
        try:
            results = session_.run(None, {name: np.asarray(feeds[name]) for name in wanted})
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
