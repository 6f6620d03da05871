"""A state dict and the file around it: found, and written back with other tensors in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dacconv.formats.base import LoadOptions
from dacconv.formats.torch.files.checkpoint import DTYPES, Checkpoint, write_safetensors
from dacconv.formats.torch.files.entries import Trail, entries, pick, put, rekeyed
from dacconv.formats.torch.files.record import ENTRY, read_record, sidecar, to_json, write_recorded
from dacconv.support.files import replacing


@dataclass(frozen=True, slots=True, eq=False)
class StateFile:
    """A state dict and the file around it. ``trail`` leads to it from the top of the file."""

    checkpoint: Checkpoint
    trail: Trail
    state: Mapping[str, Any]

    @property
    def entry(self) -> str:
        """The key of the state dict, with dots; empty where it is the whole file."""
        return ".".join(self.trail)

    @property
    def has_room(self) -> bool:
        """Whether the plan can lie inside the file."""
        return self.checkpoint.dtypes is not None or bool(self.trail)

    @property
    def record(self) -> dict[str, Any] | None:
        """What an earlier conversion left in the file."""
        where = str(self.checkpoint.path)
        if self.checkpoint.dtypes is not None:
            return read_record(self.checkpoint.metadata.get(ENTRY), where)
        inside = self.checkpoint.content.get(ENTRY) if self.trail else None
        if inside is None and not self.has_room:
            beside = sidecar(self.checkpoint.path)
            inside = beside.read_text("utf-8", "replace") if beside.is_file() else None
        return read_record(inside, where)

    def facts(self) -> Iterator[str]:
        """What a reader of the report must know about the file."""
        if self.checkpoint.legacy:
            yield "the file is in the format of PyTorch before 1.6; it is written in today's"
        others = [
            ".".join(trail)
            for trail in entries(self.checkpoint.content, Mapping)
            if trail != self.trail
        ]
        if others and self.trail:
            yield (
                f"other weights in the file ({', '.join(others[:4])}) are kept as they are and "
                "no longer match the converted ones"
            )
        if isinstance(self.checkpoint.content, Mapping) and "optimizer" in self.checkpoint.content:
            yield "the optimizer's state is kept as it is and no longer matches the weights"

    def save(
        self,
        path: Path,
        changed: Mapping[str, Mapping[str, torch.Tensor]],
        record: Mapping[str, Any],
    ) -> tuple[Path, ...]:
        """Write the file with other tensors in it; see :func:`changed_items`."""
        items = list(changed_items(self.state, changed))
        if self.checkpoint.dtypes is not None:
            dtypes = dict(self.checkpoint.dtypes)
            for new in changed.values():
                dtypes |= {key: DTYPES[tensor.dtype] for key, tensor in new.items()}
            metadata = {**self.checkpoint.metadata, ENTRY: to_json(record)}
            with replacing(path) as (temporary,):
                write_safetensors(dict(items), dtypes, metadata, temporary)
            return (path,)
        new_metadata = {
            key.rpartition(".")[0]: {"version": 1} for new in changed.values() for key in new
        }
        content = put(self.checkpoint.content, self.trail, rekeyed(self.state, items, new_metadata))
        return write_recorded(path, content, record, inside=self.has_room)

    def side_files(self, path: Path) -> tuple[Path, ...]:
        """The plan, where the file has no room for it."""
        return () if self.has_room else (sidecar(path),)


def open_state(checkpoint: Checkpoint, options: LoadOptions) -> StateFile:
    """The state dict that the options pick."""
    where = str(checkpoint.path)
    trail, state = pick(checkpoint.content, Mapping, options.key, where)
    return StateFile(checkpoint, trail, state)


def changed_items(
    state: Mapping[str, Any], changed: Mapping[str, Mapping[str, torch.Tensor]]
) -> Iterator[tuple[str, Any]]:
    """The items of a state dict with the entries of some layers replaced, in their places.

    ``changed`` maps the key prefix of a layer (``features.0.``) to its new entries by their
    whole keys; they come where the first of the old ones was.
    """
    pending = dict(changed)
    for key, value in state.items():
        prefix = next((p for p in changed if key.startswith(p)), None)
        if prefix is None:
            yield key, value
        else:
            yield from pending.pop(prefix, {}).items()
