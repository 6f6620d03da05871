"""Errors of the Python API name its keywords, not the options of the command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import ParamSpec, TypeVar

from dacconv.errors import DacconvError
from dacconv.settings import Options, Settings, SweepOptions

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
OPTION = re.compile(r"--(no-)?([a-z][a-z-]*[a-z]|[a-z])\b")
RENAMED = {"arch_arg": "arch_args", "eval": "task"}


def in_keywords(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let the errors of a function name keywords: ``last_k`` for ``--last-k``."""

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except DacconvError as error:
            error.what, error.where, error.hint = map(
                keywords, (error.what, error.where, error.hint)
            )
            error.args = (error.what,)
            raise

    return call


def keywords(text: str) -> str:
    """``--last-k`` as ``last_k`` and ``--no-fuse`` as ``fuse=False``; other words stay."""

    def keyword(match: re.Match[str]) -> str:
        name = match[2].replace("-", "_")
        name = RENAMED.get(name, name)
        if name not in _names():
            return match[0]
        return f"{name}=False" if match[1] else name

    return OPTION.sub(keyword, text)


def _names() -> set[str]:
    kinds: tuple[type[Options], ...] = (Settings, SweepOptions)
    return {each.name for kind in kinds for each in fields(kind)} | set(RENAMED.values())
