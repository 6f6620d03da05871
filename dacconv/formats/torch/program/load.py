"""Opening .pt2 archives: nothing in them is run unless the user trusts it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from dacconv.errors import FormatError, UsageError
from dacconv.formats.base import LoadOptions
from dacconv.formats.torch.files.checkpoint import check_zip, damaged
from dacconv.formats.torch.files.pickles import told
from dacconv.formats.torch.files.record import read_record
from dacconv.formats.torch.program.model import RECORD, ProgramModel, quiet
from dacconv.formats.torch.program.vet import dangers


def recorded(path: Path, *, trust_pickle: bool) -> dict[str, Any] | None:
    """The record among an archive's extra files; None where there is none.

    Raises:
        FormatError: the archive or the record is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"/{RECORD}")]
            text = archive.read(names[0]).decode("utf-8", "replace") if names else None
    except zipfile.BadZipFile as error:
        raise FormatError(f"damaged: {error}", where=str(path)) from error
    return read_record(text, str(path))


def load(path: Path, options: LoadOptions) -> ProgramModel:
    """Open a .pt2 archive.

    Raises:
        FormatError: damaged, of a version that torch cannot read, or with code inside and
            no ``trust_pickle``.
    """
    if options.arch is not None:
        raise UsageError("a .pt2 carries its own graph, so --arch has no place", where=str(path))
    check_zip(path)
    try:
        found = dangers(path)
        extras = _extras(path)
    except Exception as error:
        raise damaged(path, error) from error
    if found and not options.trust_pickle:
        raise FormatError(
            f"opening this .pt2 would run more than its graph: {told(found)}",
            where=str(path),
            hint="--trust-pickle opens it, if you trust whoever made the file",
        )
    try:
        with quiet(), path.open("rb") as stream:
            program = torch.export.load(stream)
    except Exception as error:
        text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise FormatError(
            f"torch {torch.__version__} cannot load it: {text}",
            where=str(path),
            hint="export it again with this torch, or import the library of its custom operators",
        ) from error
    return ProgramModel(path, options, program, extras)


def _extras(path: Path) -> dict[str, str]:
    """The extra files of an archive, which saving must keep."""
    with zipfile.ZipFile(path) as archive:
        found = {}
        for name in archive.namelist():
            _, mark, short = name.partition("/extra/")
            if mark:
                found[short] = archive.read(name).decode("utf-8")
    return found
