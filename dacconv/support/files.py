"""Files written beside their target and renamed, so that a reader never sees half of one.

A temporary file is called ``.NAME.dacconv-HOST-PROCESS-START-RANDOM.tmp``: the next run that
writes NAME removes those of processes that are gone.
"""

from __future__ import annotations

import os
import platform
import re
import threading
import zlib
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
        hint="check the folder, its permissions and the free space; what was there is unchanged",
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
                remove_abandoned(target)
                temporaries.append(_new_temporary(target))
                _unfinished.add(temporaries[-1])
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
            _unfinished.discard(temporary)


_unfinished: set[Path] = set()


def remove_unfinished() -> None:
    """Remove the temporary files of this process, which is about to end."""
    for path in list(_unfinished):
        with suppress(OSError):
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` by way of :func:`replacing`.

    What UTF-8 cannot say, the bytes of a file's name that are none, is written as ``\\udcff``.
    """
    with replacing(path) as (temporary,):
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def remove_abandoned(target: Path) -> None:
    """Remove the temporary files of ``target``, and of files named after it, that are abandoned.

    These are the files of processes of this machine that no longer run: they were killed while
    they wrote.
    """
    start = _temporary_stem(target)
    with suppress(OSError):
        for entry in os.scandir(target.parent):
            match = _TEMPORARY.search(entry.name)
            if match is None or not entry.name.startswith((f"{start}.", f".{target.stem}.")):
                continue
            host, process, started = match.groups()
            if host == _host() and _process_start(int(process)) != started:
                with suppress(OSError):
                    Path(entry.path).unlink()


_TEMPORARY = re.compile(r"\.dacconv-([0-9a-f]{8})-(\d+)-(\d+)-\w+\.tmp")
_LONGEST_NAME = 160  # bytes; most file systems allow 255, and the rest is ours


def _new_temporary(target: Path) -> Path:
    """A new empty file beside ``target``, which only this user can read until it is renamed."""
    import tempfile

    process = os.getpid()
    owner = f"{_host()}-{process}-{_process_start(process) or 0}"
    handle, name = tempfile.mkstemp(
        prefix=f"{_temporary_stem(target)}.dacconv-{owner}-",
        suffix=f".tmp{target.suffix}",
        dir=target.parent,
    )
    os.close(handle)
    return Path(name)


def _temporary_stem(target: Path) -> str:
    """``.NAME``; a long name is cut and ends in its checksum."""
    name = os.fsencode(target.name)
    if len(name) <= _LONGEST_NAME:
        return f".{target.name}"
    return f".{os.fsdecode(name[: _LONGEST_NAME // 2])}{zlib.crc32(name):08x}"


def _host() -> str:
    """This machine, as eight hexadecimal digits of its name."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _process_start(process: int) -> str | None:
    """When a process started, so that a later one of the same number is not taken for it.

    Clock ticks since the machine started; ``0`` where the system does not say, and None where
    no such process runs.
    """
    with suppress(OSError, IndexError):
        status = Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
        facts = status.rpartition(")")[2].split()
        return None if facts[0] in "ZX" else facts[19]  # it ended, and its parent was not told
    if os.name == "nt":  # os.kill would end the process
        return "0"
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except OSError:
        return "0"
    return "0"


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
