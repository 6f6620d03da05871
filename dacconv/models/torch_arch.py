"""The user's own code: importing an architecture, building it, and telling its errors as his."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

import dacconv
from dacconv.errors import DacconvError, UsageError

_HOW = "--arch is package.module:factory or path/to/file.py:factory, --arch-arg k=v its arguments"


@contextmanager
def user_code(doing: str, where: str, hint: str = "") -> Iterator[None]:
    """Run the user's code: its prints go to stderr, what it raises becomes a UsageError.

    The message holds the exception's type and text, and the file and line in the user's code.
    """
    try:
        with redirect_stdout(sys.stderr):  # stdout is for results
            yield
    except DacconvError:
        raise
    except (Exception, SystemExit) as error:
        text = str(error).strip() or "no message"
        told = f"{doing} raised {type(error).__name__}: {text}{_place(error)}"
        raise UsageError(told, where=where, hint=hint) from error


def _place(error: BaseException) -> str:
    """`` (file:line)`` of the deepest frame that is in no installed package."""
    if isinstance(error, SyntaxError):
        return f" ({error.filename}:{error.lineno})"
    libraries = (
        *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
        str(Path(dacconv.__file__).parent),
        "<",
    )
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def build(arch: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Import the factory that ``arch`` names and call it.

    Raises:
        UsageError: it cannot be imported or called, or returns something else than a module.
    """
    source, _, attribute = arch.rpartition(":")
    where = f"--arch {arch}"
    if not source or not attribute:
        raise UsageError("no factory named", where=where, hint=_HOW)
    with user_code(f"importing {source}", where, _HOW):
        module = _import(source, where)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(
                f"{source} has no '{attribute}'", where=where, hint=_near(module, attribute)
            )
        found = getattr(found, part)
    if isinstance(found, nn.Module) and not arguments:
        return found
    if not callable(found):
        raise UsageError(f"'{attribute}' is no function or class", where=where, hint=_HOW)
    call = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    with user_code(f"{attribute}({call})", where, "--arch-arg NAME=VALUE passes arguments"):
        made = found(**arguments)
    if not isinstance(made, nn.Module):
        raise UsageError(
            f"{attribute}({call}) returned {_what(made)}, not a torch.nn.Module",
            where=where,
            hint="name a function or class that returns the network itself",
        )
    return made


def _import(source: str, where: str) -> ModuleType:
    """A module by dotted name, or a file by path; the working folder is importable."""
    if source.endswith(".py"):
        return _import_file(Path(source), where)
    search(Path.cwd())
    return importlib.import_module(source)


def _import_file(path: Path, where: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"no such file: {path}", where=where, hint=_HOW)
    name = path.stem
    already = sys.modules.get(name)
    if already is not None and Path(getattr(already, "__file__", None) or "/") == path.resolve():
        return already
    if already is not None:
        name = f"dacconv_arch_{name}"  # never shadow a module that is in use
    search(path.resolve().parent)
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UsageError(f"cannot be imported: {path}", where=where, hint=_HOW)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def search(folder: Path) -> None:
    """Let the user's code import what lies beside it."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _near(module: ModuleType, attribute: str) -> str:
    public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
    own = [n for n in public if getattr(vars(module)[n], "__module__", "") == module.__name__]
    near = get_close_matches(attribute, public, n=3, cutoff=0.5) or own[:8]
    return f"it has {', '.join(near)}" if near else _HOW


def _what(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
