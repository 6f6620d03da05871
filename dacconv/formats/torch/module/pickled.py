"""Pickled modules: opened only on trust, and saved as what they were with plain layers inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import jit, nn

from dacconv.errors import FormatError
from dacconv.formats.base import LoadOptions
from dacconv.formats.torch.files.checkpoint import Checkpoint
from dacconv.formats.torch.files.entries import Trail, entries, pick, put
from dacconv.formats.torch.files.record import make_record, sidecar, write_recorded
from dacconv.formats.torch.module.model import TracedModel, require_tree
from dacconv.graph.types import Plan


@dataclass(frozen=True, eq=False)
class PickledModel(TracedModel):
    """A module from a pickle: the file itself, or an entry of a checkpoint."""

    format: ClassVar[str] = "module"

    checkpoint: Checkpoint = field(kw_only=True)
    trail: Trail = field(kw_only=True)

    def save(self, path: Path, *, provenance: Mapping[str, Any], plan: Plan) -> tuple[Path, ...]:
        """Pickle the module, in its container; it needs the original's code, not dacconv."""
        record = make_record(plan, provenance, {}, ".".join(self.trail))
        content = put(self.checkpoint.content, self.trail, self.module)
        return write_recorded(path, content, record, inside=bool(self.trail))

    def side_files(self, path: Path) -> tuple[Path, ...]:
        """The plan, where the file is the module alone."""
        return () if self.trail else (sidecar(path),)


def load_module(checkpoint: Checkpoint, options: LoadOptions) -> PickledModel:
    """The module in a checkpoint that has been opened on trust.

    Raises:
        FormatError: a scripted module.
        UsageError: several modules to choose from.
    """
    where = str(checkpoint.path)
    trail, module = pick(checkpoint.content, nn.Module, options.key, where)
    if isinstance(module, jit.ScriptModule):
        raise FormatError("a scripted module cannot be edited", where=where)
    require_tree(module, checkpoint.path)
    others = [".".join(t) for t in entries(checkpoint.content, nn.Module) if t != trail]
    facts = (
        [f"other modules in the file are kept as they are: {', '.join(others)}"] if others else []
    )
    if checkpoint.legacy:
        facts.append("the file is in the format of PyTorch before 1.6; it is written in today's")
    return PickledModel(
        checkpoint.path, options, module, facts=tuple(facts), checkpoint=checkpoint, trail=trail
    )
