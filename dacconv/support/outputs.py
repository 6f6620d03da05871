"""Checks of every path that a command writes to, before its work begins."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dacconv.errors import UsageError
from dacconv.support.files import remove_abandoned, require_folder

STDOUT = Path("-")
FIGURES = ("costs", "losses", "single", "first-last", "heatmap", "pareto", "pareto-time", "spectra")
"""The names of all figures that ``--plots`` can write into its folder."""
_SYSTEM = ("/dev", "/proc", "/sys")
_SHARED_MEMORY = "/dev/shm"
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True, slots=True)
class Output:
    """A file that a command writes, and the option that names it; "" for a default name.

    ``continued`` is a file that the command reads and adds to: it needs no ``--force``.
    """

    path: Path
    option: str = ""
    continued: bool = False

    @property
    def where(self) -> str:
        """The name in messages: ``--json report.json``, or the path alone for ``-o``."""
        return f"{self.option} {self.path}" if self.option.startswith("--") else str(self.path)


def report_outputs(reports: Mapping[str, Path], *, folders: bool = False) -> tuple[Output, ...]:
    """The files that the reports are written to.

    ``reports`` are paths by kind; that of ``plots`` is a folder. Stdout (``-``) is not a file and
    is left out, unless with ``folders``: then ``-`` is the name of a file in a folder for each of
    several models.
    """
    outputs = []
    for kind, path in reports.items():
        if kind == "plots":
            names = [f"{name}{suffix}" for name in FIGURES for suffix in (".png", ".svg")]
            outputs += [Output(path / name, "--plots") for name in names]
        elif path != STDOUT or folders:
            outputs.append(Output(path, f"--{kind}"))
    return tuple(outputs)


def check_outputs(outputs: Iterable[Output], inputs: Iterable[Path], *, force: bool) -> None:
    """Check that writing ``outputs`` overwrites nothing but what the user allows.

    An output must be a regular file or not exist yet; it may exist only with ``force``; and it
    must not be the same file as an input or another output, with links followed.
    Temporary files that killed runs left beside an output are removed.

    Raises:
        UsageError: an output fails one of these checks.
    """
    sources = {identity(path) for path in inputs}
    accepted: dict[tuple[object, ...], Output] = {}
    for output in outputs:
        _check_place(output)
        key = identity(output.path)
        if key in sources:
            raise UsageError(
                "is an input; inputs are never overwritten",
                where=output.where,
                hint="name another file",
            )
        if key in accepted:
            raise UsageError(
                f"is also written for {accepted[key].option or 'the model'}",
                where=output.where,
                hint="give each output a file of its own",
            )
        if os.path.lexists(output.path) and not (force or output.continued):
            raise UsageError(
                "exists already",
                where=output.where,
                hint="--force overwrites it; or name another file",
            )
        remove_abandoned(output.path)
        accepted[key] = output


def identity(path: Path) -> tuple[object, ...]:
    """A key that is equal for two paths to the same file, existing or not; links are followed."""
    status = _status(path)
    return _destination(path) if status is None else (status.st_dev, status.st_ino)


def require_file(path: Path, where: str) -> None:
    """Raise UsageError for a path that cannot name a file: ``.``, or one with a null byte."""
    if "\0" in str(path):
        raise UsageError("holds a null byte", where=where.replace("\0", "\\0"))
    if not path.name:
        raise UsageError("is a folder; name a file", where=where)


def _check_place(output: Output) -> None:
    """Raise UsageError unless a regular file can be written there."""
    path, where = output.path, output.where
    require_file(path, where)
    status = _status(path)
    kind = next((name for test, name in _KINDS if status and test(status.st_mode)), "")
    if kind == "a folder":
        raise UsageError("is a folder; name a file", where=where)
    if kind or _is_of_the_system(path):
        report = output.option in ("--json", "--html", "--markdown")
        raise UsageError(
            f"is {kind or 'a file of the system'}, and no regular file can be written there",
            where=where,
            hint=f"{output.option} - writes to standard output" if report else "name another file",
        )
    if status is None and path.is_symlink():
        raise UsageError(
            "is a link to a file that does not exist",
            where=where,
            hint="remove the link, or name the file itself",
        )
    if output.option != "--plots":  # its folder is created
        require_folder(path, where)


def _status(path: Path) -> os.stat_result | None:
    """The result of ``stat``, with links followed; None where no file exists."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot be read: {reason}", where=str(path)) from error


def _destination(path: Path) -> tuple[object, ...]:
    """The identity of the folder, and the name in it as the file system compares names."""
    folder = _status(path.parent)
    place = (folder.st_dev, folder.st_ino) if folder else os.path.realpath(path.parent)
    return place, os.path.normcase(path.name)


def _is_of_the_system(path: Path) -> bool:
    """Whether the path, as written or with links followed, lies under /dev, /proc or /sys."""
    spellings: Sequence[str] = (os.path.abspath(path), os.path.realpath(path))  # noqa: PTH100
    return any(
        text == top or text.startswith(f"{top}/")
        for text in spellings
        for top in _SYSTEM
        if not text.startswith(f"{_SHARED_MEMORY}/")
    )
