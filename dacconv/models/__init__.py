"""The model adapters: one per file format, behind one protocol."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import cast

from dacconv.models.base import LoadOptions, Model
from dacconv.models.sniff import Kind, kind

FORMATS: dict[Kind, str] = {
    "onnx": "dacconv.models.onnx_model:load",
    "pt2": "dacconv.models.torch_program:load",
    "torch": "dacconv.models.torch_open:load",
    "safetensors": "dacconv.models.torch_open:load",
}
"""Kind of file -> ``module:function`` that opens it as ``(path, options) -> Model``.

Imported on use, so that ONNX files never load torch.
"""

__all__ = ["FORMATS", "LoadOptions", "Model", "open_model"]


def open_model(path: Path | str, options: LoadOptions | None = None) -> Model:
    """Open the checkpoint at ``path``, whatever its format, without running code from it.

    Raises:
        FormatError: the file is missing, unreadable, damaged, or of a kind not taken.
        UsageError: the options do not fit the file.
    """
    path = Path(path)
    module, _, function = FORMATS[kind(path)].partition(":")
    return cast(Model, getattr(import_module(module), function)(path, options or LoadOptions()))
