"""A torch module in memory as a model: ``dacconv.load(net)`` and ``dacconv.convert(net, x)``."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import jit, nn

from dacconv.errors import FormatError, UsageError
from dacconv.formats.base import LoadOptions
from dacconv.formats.torch.convs import to_numpy
from dacconv.formats.torch.files.record import make_record, sidecar, write_recorded
from dacconv.formats.torch.module.model import TracedModel, require_tree
from dacconv.graph.types import Plan


@dataclass(frozen=True, eq=False)
class MemoryModel(TracedModel):
    """A module that was never in a file; saving pickles it."""

    format: ClassVar[str] = "module"

    @property
    def files(self) -> tuple[Path, ...]:
        """None: it was not read from a file."""
        return ()

    @property
    def sha256(self) -> str:
        """The digest of the names and values of its parameters and buffers."""
        digest = hashlib.sha256()
        for name, tensor in self.module.state_dict().items():
            digest.update(name.encode())
            if isinstance(tensor, torch.Tensor):
                digest.update(to_numpy(tensor).tobytes())
        return digest.hexdigest()

    def save(self, path: Path, *, provenance: Mapping[str, Any], plan: Plan) -> tuple[Path, ...]:
        """Pickle the module; it needs the original's code, not dacconv."""
        record = make_record(plan, provenance, {}, "")
        return write_recorded(path, self.module, record, inside=False)

    def side_files(self, path: Path) -> tuple[Path, ...]:
        """The plan."""
        return (sidecar(path),)


def wrap(module: nn.Module, options: LoadOptions) -> MemoryModel:
    """A module in memory as a model; it is not changed.

    Raises:
        FormatError: a scripted module.
    """
    path = Path(type(module).__name__)
    if isinstance(module, jit.ScriptModule):
        raise FormatError("a scripted module cannot be edited", where=str(path))
    require_tree(module, path)
    return MemoryModel(path, options, module)


def shapes_of(module: nn.Module, inputs: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of example inputs by the names of ``forward``'s arguments.

    ``inputs`` is one tensor, a sequence in the order of the arguments, or a mapping by their
    names.

    Raises:
        UsageError: it is something else, or more than ``forward`` takes.
    """
    if isinstance(inputs, torch.Tensor):
        return {"": tuple(inputs.shape)}
    if isinstance(inputs, Sequence) and not isinstance(inputs, str):
        names = list(inspect.signature(module.forward).parameters)
        if len(inputs) > len(names):
            raise UsageError(
                f"{len(inputs)} are given, and forward takes {', '.join(names)}",
                where="example_inputs",
            )
        inputs = dict(zip(names, inputs, strict=False))
    tensors = isinstance(inputs, Mapping) and all(
        isinstance(tensor, torch.Tensor) for tensor in inputs.values()
    )
    if not tensors or not inputs:
        raise UsageError(
            "is not a tensor, several, or tensors by their names",
            where="example_inputs",
            hint="dacconv.convert(net, torch.randn(1, 3, 224, 224), rank=2)",
        )
    return {str(name): tuple(tensor.shape) for name, tensor in inputs.items()}
