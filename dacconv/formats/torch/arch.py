"""The user's own network: its factory imported and called."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from torch import nn

from dacconv.errors import UsageError
from dacconv.support.user_code import import_source, user_code

_HOW = "--arch is package.module:factory or path/to/file.py:factory, --arch-arg k=v its arguments"


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
        module = import_source(source, where, _HOW)
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise UsageError(
                f"{source} has no '{attribute}'", where=where, hint=_near(module, attribute)
            )
        target = getattr(target, part)
    if isinstance(target, nn.Module) and not arguments:
        return target
    if not callable(target):
        raise UsageError(f"'{attribute}' is no function or class", where=where, hint=_HOW)
    call = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    with user_code(f"{attribute}({call})", where, "--arch-arg NAME=VALUE passes arguments"):
        net = target(**arguments)
    if not isinstance(net, nn.Module):
        raise UsageError(
            f"{attribute}({call}) returned {_what(net)}, not a torch.nn.Module",
            where=where,
            hint="name a function or class that returns the network itself",
        )
    return net


def _near(module: ModuleType, attribute: str) -> str:
    public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
    own = [n for n in public if getattr(vars(module)[n], "__module__", "") == module.__name__]
    near = get_close_matches(attribute, public, n=3, cutoff=0.5) or own[:8]
    return f"it has {', '.join(near)}" if near else _HOW


def _what(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
