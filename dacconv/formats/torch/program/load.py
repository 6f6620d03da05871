"""Opening .pt2 archives: nothing in them is run unless the user trusts it.

``torch.export.load`` unpickles records, evaluates expressions and compiles texts. It is used only
with ``--trust-pickle``. Otherwise the archive is read here, once, by readers that let through
what a program of tensors needs, and torch builds the program from the values that they give.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch._export.serde.serialize import ExportedProgramDeserializer
from torch.export import ExportedProgram

from dacconv.errors import FormatError, UsageError
from dacconv.formats.base import LoadOptions
from dacconv.formats.torch.files.checkpoint import damaged
from dacconv.formats.torch.files.record import read_record
from dacconv.formats.torch.program.archive import Contents, extra_files, read_contents
from dacconv.formats.torch.program.model import RECORD, ProgramModel, quiet
from dacconv.formats.torch.program.shapes import check_shapes
from dacconv.formats.torch.program.texts import RefusedError
from dacconv.support.archives import Archive, ArchiveError


def recorded(path: Path, *, trust_pickle: bool) -> dict[str, Any] | None:
    """The record among an archive's extra files; None where there is none.

    Raises:
        FormatError: the archive or the record is damaged.
    """
    try:
        with Archive(path) as archive:
            text = extra_files(archive).get(RECORD)
    except (ArchiveError, RefusedError, UnicodeDecodeError) as error:
        raise damaged(path, error) from error
    return read_record(text, str(path))


def load(path: Path, options: LoadOptions) -> ProgramModel:
    """Open a .pt2 archive.

    Raises:
        FormatError: damaged, of a version that torch cannot read, or with more than plain data
            inside and no ``trust_pickle``.
    """
    if options.arch is not None:
        raise UsageError("a .pt2 carries its own graph, so --arch has no place", where=str(path))
    if options.trust_pickle:
        return _trusted(path, options)
    contents = _contents(path)
    try:
        with quiet():
            program = _built(contents)
    except Exception as error:
        raise _unloadable(path, error) from error
    try:
        with quiet():
            check_shapes(program)
    except Exception as error:
        raise damaged(path, error) from error
    return ProgramModel(path, options, program, contents.extras)


def _contents(path: Path) -> Contents:
    try:
        with Archive(path) as archive:
            archive.check()
            return read_contents(archive)
    except RefusedError as error:
        raise FormatError(
            f"opening this .pt2 might do more than compute with its tensors: {error}",
            where=str(path),
            hint="--trust-pickle opens it, if you trust whoever made the file",
        ) from error
    except Exception as error:  # damage shows as almost any exception
        raise damaged(path, error) from error


def _built(contents: Contents) -> ExportedProgram:
    """The program; tensors are given as values, so that torch unpickles nothing."""
    return ExportedProgramDeserializer().deserialize(
        contents.program,
        dict(contents.weights),
        dict(contents.constants),
        contents.samples,
    )


def _trusted(path: Path, options: LoadOptions) -> ProgramModel:
    """The program as torch opens it, with all that it may run."""
    try:
        with Archive(path) as archive:
            archive.check()
            extras = _extras(archive)
    except Exception as error:
        raise damaged(path, error) from error
    try:
        with quiet(), path.open("rb") as stream:
            program = torch.export.load(stream)
    except Exception as error:
        raise _unloadable(path, error) from error
    return ProgramModel(path, options, program, extras)


def _extras(archive: Archive) -> dict[str, str]:
    try:
        return extra_files(archive)
    except RefusedError:  # the older layout
        return {}


def _unloadable(path: Path, error: Exception) -> FormatError:
    text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return FormatError(
        f"torch {torch.__version__} cannot load it: {text[:300]}",
        where=str(path),
        hint="export it again with this torch, or import the library of its custom operators",
    )
