"""Files written beside their target and renamed, so that a reader never sees half of one."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dacconv.errors import DacconvError


class WriteError(DacconvError):
    """An output cannot be written."""


def as_write_error(error: OSError, path: Path) -> WriteError:
    """The user's message for an operating system's refusal to write ``path``."""
    return WriteError(
        f"cannot write: {error.strerror or error}",
        where=str(path),
        hint="check the folder, its permissions and the free space; nothing was left there",
    )


@contextmanager
def replacing(*targets: Path) -> Iterator[tuple[Path, ...]]:
    """Temporary paths beside ``targets`` that take their names when the block succeeds.

    The targets are renamed in the order given, so name the file that others point at last.
    On any error the temporary files are removed and the targets stay as they were. A
    temporary path has the same suffix as its target.

    Raises:
        WriteError: the folder is missing, not writable or full.
    """
    temporaries: list[Path] = []
    current = targets[0]
    try:
        try:
            for target in targets:
                current = target
                handle, name = tempfile.mkstemp(
                    prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent
                )
                os.close(handle)
                temporaries.append(Path(name))
            current = targets[-1]
            yield tuple(temporaries)
            umask = os.umask(0)
            os.umask(umask)
            for temporary, target in zip(temporaries, targets, strict=True):
                current = target
                temporary.chmod(0o666 & ~umask)  # mkstemp makes private files
                temporary.replace(target)
        except OSError as error:
            raise as_write_error(error, current) from error
    finally:
        for temporary in temporaries:
            with suppress(OSError):
                temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` by way of :func:`replacing`."""
    with replacing(path) as (temporary,):
        temporary.write_text(text, encoding="utf-8")


def sha256(*paths: Path) -> str:
    """The hexadecimal SHA-256 of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
