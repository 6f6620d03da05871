"""Strict reading of JSON from files that may have been edited or damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from dacconv.errors import UsageError


def read_json(text: str, where: str) -> Any:
    """The value of a JSON text. ``where`` names the text in the message of an error.

    Raises:
        UsageError: the text is not JSON by the standard (NaN and Infinity are not), has a number
            that is too large or a key twice in one object, or is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=unique_keys)
    except RecursionError as error:
        raise UsageError("not JSON that can be read: nested too deeply", where=where) from error
    except ValueError as error:
        raise UsageError(f"not JSON: {error}", where=where) from error


def shown(value: object, longest: int = 60) -> str:
    """A value as JSON for a message, cut where it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def is_text(value: object) -> bool:
    """Whether a value is a string that UTF-8 can encode: no lone surrogate."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_number(value: object) -> bool:
    """Whether a value is a finite number that fits into 64 bits, and not a bool."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def is_count(value: object) -> bool:
    """Whether a value is a whole number from 0 that fits into 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object from its pairs: an ``object_pairs_hook`` for :func:`json.loads`.

    Raises:
        ValueError: a key occurs twice.
    """
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shown(twice)} occurs twice in one object")
    return values
