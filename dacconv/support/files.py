"""Atomic writing: a file is written beside its target and renamed.

A temporary file or folder is called ``.NAME.dacconv-HOST-PROCESS-START-RANDOM.tmp``. The next run
that writes NAME removes those of processes that no longer run.
"""

from __future__ import annotations

import os
import platform
import re
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dacconv.errors import DacconvError, UsageError

if TYPE_CHECKING:  # imported where it is used: --help does not need it
    import hashlib


class WriteError(DacconvError):
    """An output cannot be written."""


def as_write_error(error: OSError, path: Path) -> WriteError:
    """The message for an error of the operating system while writing ``path``."""
    return WriteError(
        f"cannot write: {error.strerror or error}",
        where=str(path),
        hint="check the folder, its permissions and the free space; existing files are unchanged",
    )


def require_folder(path: Path, where: str = "") -> None:
    """Raise UsageError where the folder of ``path`` does not exist."""
    if not path.parent.is_dir():
        raise UsageError(
            "its folder does not exist", where=where or str(path), hint="create the folder first"
        )


@contextmanager
def replacing(
    *targets: Path, renamed: Mapping[Path, Path] | None = None
) -> Iterator[tuple[Path, ...]]:
    """Temporary paths beside ``targets``, which are renamed to them when the block succeeds.

    They are renamed in the order of ``targets``, so a file that refers to others comes last.
    On any error the temporary files are removed and the targets stay as they were. A
    temporary path has the same suffix as its target. ``renamed`` maps targets to other names in
    the same folder, where a name follows from what is written; the block may fill it.

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
                current = (renamed or {}).get(target, target)
                temporary.chmod(0o666 & ~umask)  # mkstemp creates private files
                temporary.replace(current)
        except OSError as error:
            raise as_write_error(error, current) from error
    finally:
        for temporary in temporaries:
            with suppress(OSError):
                temporary.unlink()
            _unfinished.discard(temporary)


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` for files that are checked before they take their names.

    It is on the file system of ``target``, so that :func:`publish` only renames. It is removed
    at the end, with all files that are still in it.

    Raises:
        WriteError: the folder cannot be made, or the block cannot write into it.
    """
    import tempfile

    remove_abandoned(target)
    try:
        folder = Path(
            tempfile.mkdtemp(prefix=_temporary_prefix(target), suffix=".tmp", dir=target.parent)
        )
    except OSError as error:
        raise as_write_error(error, target) from error
    _unfinished.add(folder)
    try:
        yield folder
    except WriteError as error:  # it names a file in the folder, which the user does not know
        raise WriteError(error.what, where=str(target), hint=error.hint) from error
    finally:
        _remove(folder)
        _unfinished.discard(folder)


def publish(files: Sequence[Path], folder: Path, replaced: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Move files into ``folder``; return their new paths. The first file is moved last.

    After that the files ``replaced`` are removed, which only the old first file needed.

    Raises:
        WriteError: the operating system refuses.
    """
    targets = tuple(folder / file.name for file in files)
    for file, target in reversed(list(zip(files, targets, strict=True))):
        try:
            file.replace(target)
        except OSError as error:
            raise as_write_error(error, target) from error
    for old in set(replaced).difference(targets):
        _remove(old)
    return targets


_unfinished: set[Path] = set()


def remove_unfinished() -> None:
    """Remove this process's temporary files and folders; call it before the process ends."""
    for path in list(_unfinished):
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a temporary file, or a temporary folder with its files, where that is possible."""
    import shutil

    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` with :func:`replacing`.

    Characters that UTF-8 cannot encode, from file names that are not UTF-8, are written as
    ``\\udcff``.
    """
    with replacing(path) as (temporary,):
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def remove_abandoned(target: Path) -> None:
    """Remove what killed processes left of ``target``, and of files named after it.

    These are the temporary files and folders of processes of this machine that no longer run.
    """
    start = _temporary_stem(target)
    with suppress(OSError):
        for entry in os.scandir(target.parent):
            match = _TEMPORARY.search(entry.name)
            if match is None or not entry.name.startswith((f"{start}.", f".{target.stem}.")):
                continue
            host, process, started = match.groups()
            if host == _host() and _process_start(int(process)) != started:
                _remove(Path(entry.path))


_TEMPORARY = re.compile(r"\.dacconv-([0-9a-f]{8})-(\d+)-(\d+)-\w+\.tmp")
_LONGEST_NAME = 160  # bytes; most file systems allow 255, which leaves room for the rest


def _new_temporary(target: Path) -> Path:
    """A new empty file beside ``target``, which only this user can read until it is renamed."""
    import tempfile

    handle, name = tempfile.mkstemp(
        prefix=_temporary_prefix(target), suffix=f".tmp{target.suffix}", dir=target.parent
    )
    os.close(handle)
    return Path(name)


def _temporary_prefix(target: Path) -> str:
    """``.NAME.dacconv-HOST-PROCESS-START-`` for this process."""
    process = os.getpid()
    owner = f"{_host()}-{process}-{_process_start(process) or 0}"
    return f"{_temporary_stem(target)}.dacconv-{owner}-"


def _temporary_stem(target: Path) -> str:
    """``.NAME``; a long name is cut, and a checksum of it is appended."""
    name = os.fsencode(target.name)
    if len(name) <= _LONGEST_NAME:
        return f".{target.name}"
    return f".{os.fsdecode(name[: _LONGEST_NAME // 2])}{zlib.crc32(name):08x}"


def _host() -> str:
    """A checksum of this machine's name: eight hexadecimal digits."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _process_start(process: int) -> str | None:
    """The time when a process started, which tells it from a later one with the same number.

    In clock ticks since the machine started; ``0`` where the system does not provide it, and
    None where no such process runs.
    """
    with suppress(OSError, IndexError):
        status = Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
        facts = status.rpartition(")")[2].split()
        return None if facts[0] in "ZX" else facts[19]  # Z, X: it has ended
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
    """The SHA-256 of a file and its side files, computed in a thread.

    The thread starts with the object. Hashing releases the interpreter lock, so a second core
    does it while the first imports and parses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        import hashlib

        self._hash = hashlib.sha256()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def of(self, *paths: Path) -> str:
        """The hexadecimal digest of the bytes of ``paths``, the first of which is the object's.

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
