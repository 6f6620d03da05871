"""Files written beside their target and renamed, so that a reader never sees half of one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dacconv.errors import DacconvError, UsageError

if TYPE_CHECKING:  # imported where it is used: --help does without
    import hashlib


class WriteError(DacconvError):
    """An output cannot be written."""


def as_write_error(error: OSError, path: Path) -> WriteError:
    """The user's message for an operating system's refusal to write ``path``."""
    return WriteError(
        f"cannot write: {error.strerror or error}",
        where=str(path),
        hint="check the folder, its permissions and the free space; nothing was left there",
    )


def require_folder(path: Path, where: str = "") -> None:
    """Raise UsageError, before the work, where the folder that ``path`` goes into is missing."""
    if not path.parent.is_dir():
        raise UsageError(
            "its folder does not exist", where=where or str(path), hint="make it first"
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
                import tempfile

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


class Digest:
    """The SHA-256 of a file and those that belong to it, computed while other work goes on.

    The thread starts with the object; hashing releases the interpreter lock, so that a second
    core does it while the first imports and parses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        import hashlib

        self._hash = hashlib.sha256()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def of(self, *paths: Path) -> str:
        """The hexadecimal digest of the bytes of ``paths``, the first being the object's own.

        Raises:
            OSError: a file cannot be read.
        """
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        digest = self._hash.copy()
        for path in paths[1:]:
            _feed(digest, path)
        return digest.hexdigest()

    def _run(self) -> None:
        try:
            _feed(self._hash, self._path)
        except OSError as error:
            self._failure = error


def _feed(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
