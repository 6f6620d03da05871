"""Finding the state dict in a checkpoint, and putting a changed one in its place."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from dacconv.errors import FormatError, UsageError
from dacconv.formats.torch.members import modules

Trail: TypeAlias = tuple[str, ...]
"""The keys that lead from the top of a checkpoint to an entry; ``()`` is the top itself."""

KNOWN = (
    "state_dict", "model", "model_state_dict", "net", "network", "params", "params_ema", "ema",
    "model_ema", "ema_state_dict", "state", "weights", "generator", "netG", "G", "g_ema",
    "backbone", "module", "teacher", "student",
)  # fmt: skip
"""Names under which state dicts commonly lie. Any other name is found as well."""

WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every key. Other prefixes may be the model's."""

_DEPTH = 3


def entries(content: Any, kind: type) -> dict[Trail, Any]:
    """All entries that are modules (``nn.Module``) or state dicts (``Mapping``), by trail."""
    entries_by_trail: dict[Trail, Any] = {}

    def visit(value: Any, trail: Trail) -> None:
        if kind is nn.Module:
            if isinstance(value, nn.Module):
                entries_by_trail[trail] = value
                return
        elif is_state_dict(value):
            entries_by_trail[trail] = value
        if isinstance(value, Mapping) and len(trail) < _DEPTH:
            for key, item in value.items():
                if isinstance(key, str):
                    visit(item, (*trail, key))

    visit(content, ())
    return entries_by_trail


def is_state_dict(value: Any) -> bool:
    """A mapping from names to tensors, at least one of them a floating-point matrix or more."""
    return (
        isinstance(value, Mapping)
        and all(isinstance(key, str) for key in value)
        and any(
            isinstance(t, torch.Tensor) and t.ndim >= 2 and t.is_floating_point()
            for t in value.values()
        )
    )


def has_convs(value: Any) -> bool:
    """Whether a module or state dict holds a kernel that is larger than 1x1."""
    if isinstance(value, nn.Module):
        return any(isinstance(m, nn.Conv2d) for m in modules(value))
    return any(
        isinstance(t, torch.Tensor) and t.ndim == 4 and t.shape[2] * t.shape[3] > 1
        for t in value.values()
    )


def pick(content: Any, kind: type, key: str | None, where: str) -> tuple[Trail, Any]:
    """The entry that the user means: the one at ``key``, or the only one that holds convs.

    Raises:
        UsageError: no entry at ``key``, or several to choose from without it.
        FormatError: nothing of that kind in the file.
    """
    choices = entries(content, kind)
    if key is not None:
        return _at(content, choices, key, where)
    with_convs = {trail: value for trail, value in choices.items() if has_convs(value)}
    candidates = with_convs or choices
    if () in candidates:
        return (), candidates[()]
    if len(candidates) > 1:
        names = ", ".join(".".join(trail) for trail in candidates)
        raise UsageError(
            f"several entries hold weights: {names}",
            where=where,
            hint=f"--key picks one, such as --key {'.'.join(next(iter(candidates)))}",
        )
    if not candidates:
        raise FormatError(
            f"no weights in it: it is {_outline(content)}",
            where=where,
            hint="a state dict is a mapping from names to tensors, bare or under a key such as "
            + ", ".join(KNOWN[:4]),
        )
    return next(iter(candidates.items()))


def _at(content: Any, choices: Mapping[Trail, Any], key: str, where: str) -> tuple[Trail, Any]:
    for trail, value in choices.items():
        if ".".join(trail) == key:
            return trail, value
    names = [".".join(trail) or "the file itself" for trail in choices]
    raise UsageError(
        f"no weights at --key {key}",
        where=where,
        hint=f"weights are at: {', '.join(names)}" if names else f"it is {_outline(content)}",
    )


def _outline(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = ", ".join(str(key) for key in list(content)[:6])
        return f"a mapping with the keys {keys}" if keys else "an empty mapping"
    return f"a {type(content).__name__}"


def put(content: Any, trail: Trail, value: Any) -> Any:
    """``content`` with the entry at ``trail`` replaced; what is along the way is copied."""
    if not trail:
        return value
    changed = copy.copy(content)
    changed[trail[0]] = put(content[trail[0]], trail[1:], value)
    return changed


def rekeyed(original: Any, items: Iterable[tuple[str, Any]], renamed: Mapping[str, Any]) -> Any:
    """A mapping of the type of ``original`` with other items.

    ``renamed`` has the entries to add to the ``_metadata`` of ``Module.state_dict``.
    """
    copy = type(original)() if isinstance(original, dict) else {}
    try:
        copy.update(items)
    except TypeError:
        copy = dict(items)
    metadata = getattr(original, "_metadata", None)
    if isinstance(metadata, dict):
        setattr(copy, "_metadata", type(metadata)({**metadata, **renamed}))  # noqa: B010
    return copy


def best_prefix(keys: Iterable[str], targets: Iterable[str]) -> str:
    """The prefix under which most of ``targets`` are among ``keys``; the shortest such."""
    have, needed = set(keys), list(targets)
    best, most = "", -1
    for prefix in sorted(set(prefixes(have)), key=lambda p: (len(p), p)):
        count = sum(prefix + key in have for key in needed)
        if count > most:
            best, most = prefix, count
    return best


def prefixes(keys: Iterable[str]) -> Iterator[str]:
    """Everything that keys may have before the names of a network: the starts up to a dot."""
    yield ""
    for key in keys:
        parts = key.split(".")
        for depth in range(1, min(len(parts), 5)):
            yield ".".join(parts[:depth]) + "."


def wrapper_prefix(keys: Iterable[str]) -> str:
    """The wrapper prefixes that every key shares, such as ``module.``."""
    listed, prefix = list(keys), ""
    while listed:
        more = next((w for w in WRAPPERS if all(k.startswith(prefix + w) for k in listed)), None)
        if more is None or any(key == prefix + more for key in listed):
            break
        prefix += more
    return prefix
