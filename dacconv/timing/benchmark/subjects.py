"""The models of a benchmark, and the inputs that all of them take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats import timing_adapter
from dacconv.formats.base import LoadOptions, Model
from dacconv.formats.inputs import reason_not_runnable
from dacconv.formats.sniff import kind
from dacconv.graph.types import Shape, ValueSpec
from dacconv.timing.benchmark.result import Subject


@dataclass(frozen=True, slots=True, eq=False)
class OpenModel:
    """An opened model. The sizes of its ``inputs`` are all known."""

    subject: Subject
    path: Path
    options: LoadOptions
    model: Model
    inputs: tuple[ValueSpec, ...]


def open_all(paths: Sequence[Path], options: LoadOptions) -> tuple[OpenModel, ...]:
    """Open every model.

    Raises:
        DacconvError: one cannot be opened or run, or they take different inputs.
    """
    names = _names(paths)
    opened = tuple(_open(path, name, options) for path, name in zip(paths, names, strict=True))
    first = opened[0]
    for other in opened[1:]:
        _check_same(first, other)
    return opened


def with_batch(opened: OpenModel, batch: int) -> OpenModel:
    """The same model on ``batch`` samples at once.

    Raises:
        UsageError: the model fixes its batch.
    """
    first = opened.inputs[0]
    sizes = first.shape or ()
    if not sizes:
        raise UsageError(f"input '{first.name}' has no batch axis", where=str(opened.path))
    if sizes[0] == batch:
        return opened
    same_batch = [
        spec for spec in opened.inputs if len(spec.shape or ()) > 1 and _first(spec) == sizes[0]
    ]
    names = {name or first.name for name in opened.options.input_shapes}
    refusal: UsageError | None = None
    for specs in (same_batch, [first]):  # an input of batch 1 may serve all samples
        shapes = {spec.name: _known(spec) for spec in opened.inputs if spec.name in names}
        shapes |= {spec.name: (batch, *_known(spec)[1:]) for spec in specs}
        options = replace(opened.options, input_shapes=shapes)
        try:
            return _open(opened.path, opened.subject.name, options)
        except UsageError as error:
            refusal = refusal or error
    message = refusal.what if refusal else "it does not fit"
    raise UsageError(
        f"--batch {batch} does not fit: {message}",
        where=str(opened.path),
        hint="export it with a dynamic batch axis, or omit --batch",
    )


def _open(path: Path, name: str, options: LoadOptions) -> OpenModel:
    model = timing_adapter(kind(path)).open_model(path, options)
    if reason := reason_not_runnable(model):
        raise UnsupportedError(reason, where=str(path))
    inputs = tuple(
        replace(spec, shape=tuple(size or 1 for size in spec.shape or ()))
        for spec in model.inputs()
    )
    size = sum(file.stat().st_size for file in model.files)
    subject = Subject(name, str(path), model.format, model.runtime, size)
    return OpenModel(subject, path, options, model, inputs)


def _names(paths: Sequence[Path]) -> list[str]:
    """The names of the files; whole paths where names are equal."""
    names = [path.name for path in paths]
    return [str(p) if names.count(p.name) > 1 else p.name for p in paths]


def _check_same(first: OpenModel, other: OpenModel) -> None:
    """Refuse different shapes or types of inputs; names may differ, as they do between formats."""
    same = len(first.inputs) == len(other.inputs) and all(
        a.shape == b.shape and (a.dtype == b.dtype or _floats(a, b))
        for a, b in zip(first.inputs, other.inputs, strict=True)
    )
    if not same:
        raise UnsupportedError(
            f"the models take different inputs: {_inputs_text(first)}; {_inputs_text(other)}",
            hint="set the sizes that a model leaves open with --input-shape",
        )


def _floats(a: ValueSpec, b: ValueSpec) -> bool:
    return a.dtype.startswith("float") and b.dtype.startswith("float")


def _inputs_text(opened: OpenModel) -> str:
    return f"{opened.subject.name} takes {', '.join(map(input_text, opened.inputs)) or 'nothing'}"


def input_text(spec: ValueSpec) -> str:
    """``image 1x3x224x224 float32``."""
    return f"{spec.name} {'x'.join(map(str, spec.shape or ())) or 'scalar'} {spec.dtype}"


def _first(spec: ValueSpec) -> int | None:
    return spec.shape[0] if spec.shape else None


def _known(spec: ValueSpec) -> tuple[int, ...]:
    shape: Shape = spec.shape or ()
    return tuple(size or 1 for size in shape)
