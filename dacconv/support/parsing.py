"""Parsing of option values: shares, lists of numbers, shapes, arguments."""

from __future__ import annotations

import math
from typing import Any

from dacconv.errors import UsageError


def parse_share(value: str | float, option: str) -> float:
    """``40%``, ``0.4`` or the number 0.4 as 0.4; UsageError for anything else."""
    text = str(value)
    try:
        share = float(text.removesuffix("%").strip()) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"'{text}' is not a share", where=option, hint="write 40% or 0.4")
    return share


def parse_shares(text: str, option: str) -> tuple[float, ...]:
    """``0.3,40%`` as shares."""
    return tuple(parse_share(part.strip(), option) for part in text.split(","))


def parse_layer_ranks(text: str) -> dict[str, int | str]:
    """``NAME=R,NAME=METHOD:R`` as a mapping; a rank with a method stays text.

    Raises:
        UsageError: the text is anything else.
    """
    ranks: dict[str, int | str] = {}
    for part in text.split(","):
        name, equals, rank = (piece.strip() for piece in part.rpartition("="))
        if not equals or not name:
            raise UsageError(f"'{part}' is not NAME=RANK", where="--ranks")
        method, colon, numbers = rank.partition(":")
        try:
            sizes = [int(number) for number in numbers.split("x")] if colon else [int(rank)]
        except ValueError as error:
            raise UsageError(
                f"'{rank}' is not a whole number",
                where=f"--ranks {name}",
                hint="write NAME=2, NAME=spatial:12, or NAME=tucker:8x16",
            ) from error
        ranks[name] = f"{method.strip()}:{'x'.join(map(str, sizes))}" if colon else sizes[0]
    return ranks


def parse_numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """``0.5,0.5,0.5`` as numbers; UsageError for anything else."""
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"'{text}' is not a list of numbers", where=option) from error
    if not all(math.isfinite(value) for value in values):
        raise UsageError(f"'{text}' holds a number that is not finite", where=option)
    return values


def parse_counts(text: str | None, option: str) -> tuple[int, ...]:
    """``1,8`` as whole numbers above 0, None as ``()``; UsageError for anything else."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"'{text}' is not a list of whole numbers above 0", where=option, hint="as in 1,8"
        )
    return tuple(int(part) for part in parts)


def parse_shapes(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """``[name:]1,3,224,224`` as input name -> shape; the name ``""`` is the first input."""
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition(":")
        try:
            shape = tuple(int(size) for size in sizes.replace("x", ",").split(","))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1:
            raise UsageError(
                f"'{text}' is not a shape",
                where="--input-shape",
                hint="write sizes above 0, as in 1,3,224,224 or image:1,3,224,224",
            )
        shapes[name] = shape
    return shapes


def parse_arguments(texts: tuple[str, ...]) -> dict[str, Any]:
    """``k=v`` as keyword arguments; v is read as TOML (number, true, "text", list) or text."""
    import tomllib  # imported where it is used: --help does not need it

    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UsageError(f"'{text}' is not NAME=VALUE", where="--arch-arg")
        try:
            arguments[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            arguments[name.strip()] = {"True": True, "False": False, "None": None}.get(value, value)
    return arguments
