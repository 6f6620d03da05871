"""The model adapters: one per file format, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from dacconv.errors import FormatError
from dacconv.formats.base import LoadOptions, Model, Record
from dacconv.formats.sniff import Kind, kind
from dacconv.formats.spans import ModelFile
from dacconv.formats.timing import TimingAdapter

FORMATS: dict[Kind, str] = {
    "onnx": "dacconv.formats.onnx.model:load",
    "pt2": "dacconv.formats.torch.program.load:load",
    "torch": "dacconv.formats.torch.open:load",
    "safetensors": "dacconv.formats.torch.open:load",
}
"""Kind of file -> ``module:function`` that opens it as ``(path, options) -> Model``.

Imported on use, so that ONNX files never load torch.
"""

RECORDS: dict[Kind, str] = {
    "onnx": "dacconv.formats.onnx.save:recorded",
    "pt2": "dacconv.formats.torch.program.load:recorded",
    "torch": "dacconv.formats.torch.files.record:recorded",
    "safetensors": "dacconv.formats.torch.files.record:recorded",
}
"""Kind of file -> ``module:function`` that reads the record of a converted file, as plain data."""

SPANS: dict[Kind, str] = {
    "onnx": "dacconv.formats.onnx.spans:model_files",
    "pt2": "dacconv.formats.torch.program.spans:model_files",
    "torch": "dacconv.formats.torch.files.spans:model_files",
    "safetensors": "dacconv.formats.torch.files.spans:model_files",
}
"""Kind of file -> ``module:function`` that lists the files of a model and the tensors in them."""

TIMED: dict[Kind, str] = {
    "onnx": "dacconv.formats.onnx.timing",
    "pt2": "dacconv.formats.torch.timing",
    "torch": "dacconv.formats.torch.timing",
    "safetensors": "dacconv.formats.torch.timing",
}
"""Kind of file -> the module that times it, a :class:`~dacconv.formats.timing.TimingAdapter`."""

__all__ = [
    "FORMATS",
    "RECORDS",
    "SPANS",
    "TIMED",
    "LoadOptions",
    "Model",
    "ModelFile",
    "model_files",
    "open_model",
    "read_record",
    "resized",
    "timing_adapter",
]


def open_model(path: Path | str, options: LoadOptions | None = None) -> Model:
    """Open the checkpoint at ``path``, whatever its format, without running code from it.

    Raises:
        FormatError: the file is missing, unreadable, damaged, or of a kind not taken.
        UsageError: the options do not fit the file.
    """
    path = Path(path)
    file_kind = kind(path)
    if file_kind != "onnx" and not _is_utf8(path):
        raise FormatError(
            "its name is not UTF-8, and PyTorch cannot open it",
            where=str(path),
            hint="rename the file or its folder",
        )
    return cast(Model, _function(FORMATS[file_kind])(path, options or LoadOptions()))


def resized(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> Model:
    """The model with other shapes of its inputs, also where its file fixes them, if it can be.

    Raises:
        UsageError: the format fixes the sizes for good, as an exported program does.
    """
    if model.format == "onnx":
        return cast(Model, _function("dacconv.formats.onnx.model:resize")(model, shapes))
    return open_model(model.path, replace(model.options, input_shapes=dict(shapes)))


def _is_utf8(path: Path) -> bool:
    """Whether a path can be spelled in UTF-8; Linux allows any bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def timing_adapter(kind: Kind) -> TimingAdapter:
    """The module that times files of that kind, and layers in the runtime that they belong to."""
    return cast(TimingAdapter, import_module(TIMED[kind]))


def model_files(path: Path) -> tuple[ModelFile, ...]:
    """The files of the model at ``path``, the model's own first, with the tensors in each.

    Raises:
        FormatError: a file is missing, unreadable, damaged, or of a kind not taken.
    """
    return cast(tuple[ModelFile, ...], _function(SPANS[kind(path)])(path))


def read_record(path: Path, *, trust_pickle: bool = False) -> Record | None:
    """What the converted file at ``path`` says of itself; None for a file that says nothing.

    Raises:
        FormatError: the file is unreadable, or the record is damaged.
    """
    record = _function(RECORDS[kind(path)])(path, trust_pickle=trust_pickle)
    if record is None:
        return None
    origin, plan = record.get("provenance"), record.get("plan")
    keys = ("version", "sha256", "source", "options")
    whole = isinstance(origin, Mapping) and isinstance(plan, Mapping)
    if (
        not whole
        or any(origin.get(key) is None for key in keys)
        or not isinstance(origin["options"], Mapping)
        or not all(isinstance(key, str) for key in origin["options"])
    ):
        raise FormatError("its record of the conversion is damaged", where=str(path))
    return Record(origin, plan)


def _function(place: str) -> Callable[..., Any]:
    module, _, function = place.partition(":")
    return cast(Callable[..., Any], getattr(import_module(module), function))
