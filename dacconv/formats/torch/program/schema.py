"""The JSON of a .pt2 as torch's schema classes, every value of it held against an allow-list.

The classes of ``torch._export.serde.schema`` say which fields there are and of what kinds; fields
that they lack are dropped. What a text may be is said in :mod:`.texts`, and which numbers are too
large in :mod:`.bounds`.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from enum import IntEnum
from functools import cache
from typing import Any

from torch._export.serde import schema
from torch._export.serde.union import _Union

from dacconv.formats.torch.program.bounds import check_numbers
from dacconv.formats.torch.program.signatures import check_calls
from dacconv.formats.torch.program.texts import KEYS, TEXTS, RefusedError, match, plain_metadata
from dacconv.support.json_values import unique_keys

MOST_JSON = 64 << 20
"""Bytes of a JSON record."""
_DEEPEST = 8
"""How deep graphs may lie in graphs."""

_DROPPED = frozenset({"GraphModule.metadata", "GraphModule.treespec_namedtuple_fields"})
"""Mappings that nothing here needs."""

_REFUSED: Mapping[str, str] = {
    "Argument.as_custom_obj": "an object of a custom class",
    "InputSpec.custom_obj": "an object of a custom class",
    "InputSpec.token": "an effect token",
    "OutputSpec.token": "an effect token",
}


def _parse(data: bytes | bytearray) -> Any:
    """Parse JSON; ValueError where it is damaged or names a key twice."""
    return json.loads(data.decode("utf-8"), object_pairs_hook=unique_keys)


def read_program(data: bytes | bytearray) -> schema.ExportedProgram:
    """The program of a ``models/model.json``, without its guards, which are code.

    Raises:
        RefusedError: it holds something that is not plainly data.
        ValueError: it is damaged.
    """
    program = _read(schema.ExportedProgram, _parse(data), "program", 0)
    program.guards_code = []
    check_numbers(program.graph_module.graph)
    check_calls(program.graph_module.graph)
    return typing.cast(schema.ExportedProgram, program)


def read_payload(data: bytes | bytearray) -> dict[str, schema.PayloadMeta]:
    """What a ``*_config.json`` says of the tensors of an archive, by name.

    Raises:
        RefusedError: it holds something that is not plainly data.
        ValueError: it is damaged.
    """
    config = _read(schema.PayloadConfig, _parse(data), "weights", 0).config
    return typing.cast(dict[str, schema.PayloadMeta], config)


def _read(kind: Any, value: Any, place: str, depth: int) -> Any:
    """``value`` as an object of the type that the schema gives; ``place`` is ``Class.field``."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _read(kind.__origin__, value, place, depth)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (each for each in typing.get_args(kind) if each is not type(None))
        return None if value is None else _read(inner, value, place, depth)
    if origin is list:
        (inner,) = typing.get_args(kind)
        return [_read(inner, each, place, depth) for each in _of(list, value, place)]
    if origin is dict:
        return _mapping(typing.get_args(kind)[1], _of(dict, value, place), place, depth)
    if isinstance(kind, type) and issubclass(kind, _Union):
        return _union(kind, _of(dict, value, place), depth)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, _of(dict, value, place), depth)
    return _leaf(kind, value, place)


def _of(kind: type, value: Any, place: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{place} in its JSON is not a {kind.__name__}")
    return value


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    return typing.get_type_hints(kind, globalns=vars(schema))


def _mapping(inner: Any, value: dict[str, Any], place: str, depth: int) -> dict[str, Any]:
    if place in _DROPPED:
        return {}
    if place == "Node.metadata":
        return plain_metadata(value)
    if place not in KEYS:
        if value:
            raise RefusedError(f"entries of {place}")
        return {}
    for key in value:
        match(KEYS[place], key)
    return {key: _read(inner, each, place, depth) for key, each in value.items()}


def _union(kind: Any, value: dict[str, Any], depth: int) -> Any:
    """A value of one of several kinds, which the only key names."""
    hints = _hints(kind)
    if len(value) != 1 or next(iter(value)) not in hints:
        raise ValueError(f"{kind.__name__} in its JSON is of no kind that is known")
    ((name, inner),) = value.items()
    place = f"{kind.__name__}.{name}"
    if place in _REFUSED:
        raise RefusedError(_REFUSED[place])
    return kind.create(**{name: _read(hints[name], inner, place, depth)})


def _dataclass(kind: Any, value: dict[str, Any], depth: int) -> Any:
    if kind is schema.Graph:
        depth += 1
        if depth > _DEEPEST:
            raise RefusedError(f"graphs in graphs, more than {_DEEPEST} deep")
    hints = _hints(kind)
    known = {
        each.name: _read(hints[each.name], value[each.name], f"{kind.__name__}.{each.name}", depth)
        for each in dataclasses.fields(kind)
        if each.name in value
    }
    try:
        return kind(**known)
    except TypeError as error:
        raise ValueError(f"its JSON lacks parts: {error}") from error


def _leaf(kind: Any, value: Any, place: str) -> Any:
    """A number, a switch or a text."""
    if kind is bool:
        return _of(bool, value, place)
    if kind is float:
        if isinstance(value, str) and value in ("Infinity", "-Infinity", "NaN"):
            return float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{place} in its JSON is not a number")
        return float(value)
    if isinstance(kind, type) and issubclass(kind, int):
        if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
            raise ValueError(f"{place} in its JSON is not a whole number of 64 bits")
        if issubclass(kind, IntEnum):
            kind(value)  # ValueError for one that is not known
        return value
    if kind is str:
        if place not in TEXTS:
            raise RefusedError(f"text in {place}")
        TEXTS[place](_of(str, value, place))
        return value
    raise ValueError(f"{place} in its JSON is of a kind that is not known")
