"""What a converted torch file says about itself: its plan, where it comes from, its new layers.

It lies inside the file where there is room (a checkpoint with several entries, the metadata of
safetensors), else beside it as ``<stem>.plan.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dacconv.errors import FormatError
from dacconv.formats.torch.files.checkpoint import read_checkpoint, write_pickle
from dacconv.graph.plan_json import plan_to_dict
from dacconv.graph.types import Plan
from dacconv.support.files import replacing

ENTRY = "dacconv"
"""The key of the record in a checkpoint, and in the metadata of safetensors."""

RECORD_VERSION = 1


def make_record(
    plan: Plan,
    provenance: Mapping[str, Any],
    modules: Mapping[str, Any],
    entry: str,
    replaced: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record as plain data: strings, numbers, lists and dicts, so that it opens safely.

    ``entry`` is the key of what was converted, with dots. ``modules`` maps the name of each
    replaced module to the spec of what took its place
    (:func:`dacconv.formats.torch.convs.from_spec`); empty where the architecture is not known.
    ``replaced`` maps the same names to the geometry of the layers that were there before; None
    where it is not known, as in the files of earlier versions.
    """
    fields = {
        "record_version": RECORD_VERSION,
        "provenance": provenance,
        "entry": entry,
        "plan": plan_to_dict(plan),
        "modules": modules,
        **({} if replaced is None else {"replaced": replaced}),
    }
    plain: dict[str, Any] = json.loads(json.dumps(fields, default=str, sort_keys=True))
    return plain


def sidecar(path: Path) -> Path:
    """``model.dac.pt`` -> ``model.dac.plan.json``."""
    return path.with_suffix(".plan.json")


def to_json(record: Mapping[str, Any], *, indent: int | None = None) -> str:
    """The record as JSON with sorted keys, ending in a newline where it is indented."""
    text = json.dumps(record, indent=indent, sort_keys=True, ensure_ascii=False)
    return text + "\n" if indent else text


def read_record(value: Any, where: str) -> dict[str, Any] | None:
    """A record from an entry of a file or from the text of a sidecar; None where it is none.

    Raises:
        FormatError: a record of a version that is not known, or a damaged one.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise FormatError(f"its plan is not JSON: {error}", where=where) from error
    if not isinstance(value, dict) or "record_version" not in value:
        return None
    if value["record_version"] != RECORD_VERSION or not isinstance(value.get("modules"), dict):
        raise FormatError(
            f"its plan has version {value['record_version']}, which this dacconv cannot read",
            where=where,
            hint="update dacconv, or convert the original again",
        )
    return value


def write_recorded(
    path: Path, content: Any, record: Mapping[str, Any], *, inside: bool
) -> tuple[Path, ...]:
    """Pickle ``content`` with its record, ``inside`` it or beside it; every file written."""
    if inside:
        content[ENTRY] = dict(record)
        with replacing(path) as (temporary,):
            write_pickle(content, temporary)
        return (path,)
    beside = sidecar(path)
    with replacing(beside, path) as (notes, temporary):
        write_pickle(content, temporary)
        notes.write_text(to_json(record, indent=2), encoding="utf-8")
    return (path, beside)


def recorded(path: Path, *, trust_pickle: bool) -> dict[str, Any] | None:
    """The record of a checkpoint: inside it, or beside it; None where there is none.

    Raises:
        FormatError: the file or the record is damaged.
    """
    beside = sidecar(path)
    if beside.is_file():
        return read_record(beside.read_text("utf-8", "replace"), str(beside))
    checkpoint = read_checkpoint(path, trust_pickle=trust_pickle)
    if checkpoint.dtypes is not None:
        return read_record(checkpoint.metadata.get(ENTRY), str(path))
    inside = checkpoint.content.get(ENTRY) if isinstance(checkpoint.content, Mapping) else None
    return read_record(inside, str(path))
