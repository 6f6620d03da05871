"""Two reports side by side, from their JSON: what changed between two releases of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dacconv.errors import FormatError, UsageError
from dacconv.reports.numbers import UNKNOWN, change, error, share
from dacconv.support.json_values import is_number, read_json
from dacconv.support.numbers import three_digits

Values = Mapping[str, Any]


def read_report(path: Path) -> Values:
    """The content of a report that ``--json`` wrote.

    Raises:
        UsageError: the file cannot be read.
        FormatError: it is no report.
    """
    where = str(path)
    try:
        data = read_json(path.read_text(encoding="utf-8"), where)
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(f"not readable: {problem}", where=where) from problem
    if not isinstance(data, Mapping) or "schema_version" not in data or "layers" not in data:
        raise FormatError(
            "this is no report of dacconv", where=where, hint="dacconv convert --json FILE"
        )
    return data


def whole(first: Values, second: Values) -> list[tuple[str, str, str]]:
    """What the reports say of the whole network: a name, and the text of each side."""
    facts = {
        "model": lambda data: _text(data, "provenance", "source"),
        "options": _options,
        "verdict": lambda data: _text(data, "verdict", "level"),
        "layers split": lambda data: str(sum(row.get("rank") is not None for row in _rows(data))),
        "MACs": lambda data: _change(data, "macs"),
        "parameters": lambda data: _change(data, "params"),
        "relative error": lambda data: error(_number(data, "verification", "relative_error")),
        "same top class": lambda data: share(_number(data, "verification", "agreement")),
        "times as fast": _speed,
    }
    return [(name, fact(first), fact(second)) for name, fact in facts.items()]


def layers(first: Values, second: Values) -> list[tuple[str, str, str]]:
    """The layers that the reports treat differently, with what each does to them."""
    splits = [
        {str(row.get("name")): _split(row) for row in _rows(data)} for data in (first, second)
    ]
    names = dict.fromkeys([*splits[0], *splits[1]])
    rows = [(name, *(side.get(name, "-") for side in splits)) for name in names]
    return [(name, a, b) for name, a, b in rows if a != b]


def _value(data: Values, *path: str) -> Any:
    value: Any = data
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _text(data: Values, *path: str) -> str:
    value = _value(data, *path)
    return value if isinstance(value, str) else UNKNOWN


def _number(data: Values, *path: str) -> float | None:
    value = _value(data, *path)
    return value if is_number(value) else None


def _rows(data: Values) -> Sequence[Values]:
    rows = data["layers"]
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _options(data: Values) -> str:
    options = _value(data, "provenance", "options")
    if not isinstance(options, Mapping):
        return UNKNOWN
    return ", ".join(f"{key} {value}" for key, value in options.items()) or "none"


def _change(data: Values, kind: str) -> str:
    before = _number(data, "totals", kind, "before")
    return change(before, _number(data, "totals", kind, "after"))


def _speed(data: Values) -> str:
    speedup = _number(data, "verification", "latency", "speedup")
    return UNKNOWN if speedup is None else three_digits(speedup)


def _split(row: Values) -> str:
    """How a layer is split, and the error of its kernel."""
    rank, method = row.get("rank"), row.get("method")
    if rank is None:
        return "whole"
    text = "x".join(map(str, rank)) if isinstance(rank, list) else str(rank)
    form = row.get("form")
    loss = _number(row, "kernel_error")
    words = [str(method), text, *([str(form)] if form else []), f"(error {error(loss)})"]
    return " ".join(words)
