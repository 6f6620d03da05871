"""Settings from a TOML file and from the command line, checked against their declarations."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from dacconv import settings as kinds
from dacconv.errors import UsageError
from dacconv.settings import Option, Settings, check_known, overlaid
from dacconv.support.parsing import parse_layer_ranks


def read_settings(config: Path | None, typed: Mapping[str, Any]) -> Settings:
    """The settings of a TOML file, overridden by those typed on the command line.

    An option that chooses ranks replaces the one of the file, also of another name, and so do
    --first-k and --last-k.
    """
    values = read_toml(config) if config else {}
    return Settings(**overlaid(values, typed))


def read_toml(path: Path) -> dict[str, Any]:
    """Read settings from TOML; keys are the names of the options, ``last-k`` or ``last_k``.

    Raises:
        UsageError: the file is not TOML, has an unknown key (the message names the nearest), or a
            value of a wrong type.
    """
    data = load_toml(path)
    check_known(data, setting_names(), str(path))
    return entries(data, str(path))


def load_toml(path: Path) -> dict[str, Any]:
    """The data of a TOML file; UsageError where it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError("no such file", where=str(path)) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"not readable as TOML: {error}", where=str(path)) from error


def setting_names() -> tuple[str, ...]:
    """The names of all settings."""
    return tuple(f.name for f in fields(Settings))


def entries(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of :class:`Settings` from the keys and values of TOML data."""
    declared = {f.name: declaration for f, declaration in Settings.declared()}
    names = {key: key.replace("-", "_") for key in data}
    return {
        name: _checked(declared[name], data[key], f"{where}, {key}") for key, name in names.items()
    }


def _checked(declaration: Option, value: Any, where: str) -> Any:
    """A TOML value, converted to the kind of its option."""
    return _READERS[declaration.kind](value, where)


def _texts(value: Any, where: str) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise UsageError("is not text or a list of texts", where=where)
    return tuple(items)


def _ranks(value: Any, where: str) -> dict[str, int | str]:
    if isinstance(value, str):
        return parse_layer_ranks(value)
    if not isinstance(value, dict):
        raise UsageError("is not a table of layer = rank", where=where)
    return value


def _share(value: Any, where: str) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return str(_of(str)(value, where))


def _numbers(value: Any, where: str) -> str:
    parts = value if isinstance(value, list) else [value]
    if isinstance(value, str) or not all(isinstance(part, (int, float)) for part in parts):
        return str(_of(str)(value, where))
    return ",".join(map(str, parts))


def _of(*types: type) -> Callable[[Any, str], Any]:
    def read(value: Any, where: str) -> Any:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            names = " or ".join(each.__name__ for each in types)
            raise UsageError(f"{value!r} is not {names}", where=where)
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{value} is not a finite number", where=where)
        return value

    return read


def _at_least(least: int) -> Callable[[Any, str], int]:
    def read(value: Any, where: str) -> int:
        number: int = _of(int)(value, where)
        if number < least:
            raise UsageError(f"{number} is not a whole number of at least {least}", where=where)
        return number

    return read


_READERS: dict[str, Callable[[Any, str], Any]] = {
    kinds.WHOLE: _of(int),
    kinds.COUNT: _at_least(1),
    kinds.NATURAL: _at_least(0),
    kinds.NUMBER: _of(float, int),
    kinds.TEXT: _of(str),
    kinds.PATH: _of(str),
    kinds.SWITCH: _of(bool),
    kinds.FLAG: _of(bool),
    kinds.SHARE: _share,
    kinds.TEXTS: _texts,
    kinds.RANKS: _ranks,
    kinds.NUMBERS: _numbers,
}
