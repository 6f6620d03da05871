"""The user's own code: importing it, running it, and reporting its errors as the user's."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType

import dacconv
from dacconv.errors import DacconvError, UsageError


@contextmanager
def user_code(doing: str, where: str, hint: str = "") -> Iterator[None]:
    """Run the user's code in the block: it prints to stderr, and its exceptions are translated.

    ``doing`` is the subject of the message, such as ``importing nets.py``.

    Raises:
        UsageError: the code raised an exception; the message has its type and text, and the file
            and line in the user's code.
    """
    try:
        with redirect_stdout(sys.stderr):  # stdout is for results
            yield
    except DacconvError:
        raise
    except (Exception, SystemExit) as error:
        text = str(error).strip() or "no message"
        message = f"{doing} raised {type(error).__name__}: {text}{_place(error)}"
        raise UsageError(message, where=where, hint=hint) from error


def _place(error: BaseException) -> str:
    """`` (file:line)`` of the innermost frame outside installed packages, or ``""``."""
    if isinstance(error, SyntaxError):
        return f" ({error.filename}:{error.lineno})"
    own = _own_frames(error)
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def own_traceback(error: BaseException) -> str:
    """The traceback without the frames of dacconv and of installed packages."""
    lines = traceback.format_list(_own_frames(error))
    lines += traceback.format_exception_only(error)
    return "Traceback (most recent call last):\n" + "".join(lines).rstrip()


def _own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    libraries = (
        *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
        str(Path(dacconv.__file__).parent),
        "<",
    )
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if not frame.filename.startswith(libraries)]


def import_source(source: str, where: str, hint: str) -> ModuleType:
    """A module by its dotted name, or a ``.py`` file by its path.

    The working folder is added to the search path of modules.
    """
    if source.endswith(".py"):
        return _import_file(Path(source), where, hint)
    search(Path.cwd())
    return importlib.import_module(source)


def absolute(name: str) -> str:
    """``FILE.py:NAME`` with the absolute path, so that it is valid in any working folder."""
    source, colon, attribute = name.rpartition(":")
    return f"{Path(source).resolve()}{colon}{attribute}" if source.endswith(".py") else name


def _import_file(path: Path, where: str, hint: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"no such file: {path}", where=where, hint=hint)
    name = path.stem
    already = sys.modules.get(name)
    if already is not None and Path(getattr(already, "__file__", None) or "/") == path.resolve():
        return already
    if already is not None:
        name = f"dacconv_user_{name}"  # never shadow a module that is in use
    search(path.resolve().parent)
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UsageError(f"cannot be imported: {path}", where=where, hint=hint)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def search(folder: Path) -> None:
    """Append a folder to the search path of modules."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
