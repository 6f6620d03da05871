"""Which of the eligible layers a plan is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from dacconv.errors import UsageError
from dacconv.graph.types import Layer


@dataclass(frozen=True, slots=True)
class Selection:
    """At most one of ``first_k`` and ``last_k``; ``layers`` and ``skip`` hold globs.

    ``first_k`` and ``last_k`` count the eligible layers that ``layers`` and ``skip`` leave.
    """

    first_k: int | None = None
    last_k: int | None = None
    layers: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()


def select(layers: Sequence[Layer], selection: Selection) -> tuple[Layer, ...]:
    """The eligible layers that the selection names, in their order.

    Raises:
        UsageError: contradictory options, a k that is too large, a glob without a match, or
            one that names only layers that cannot be split.
    """
    if selection.first_k is not None and selection.last_k is not None:
        raise UsageError(
            "--first-k and --last-k exclude each other", hint="give one, or list --layers"
        )
    chosen_names = {name for glob in selection.layers for name in _wanted(glob, layers)}
    unwanted = {name for glob in selection.skip for name in match(glob, layers, option="--skip")}
    chosen = [
        layer
        for layer in layers
        if layer.skip is None
        and (not selection.layers or layer.name in chosen_names)
        and layer.name not in unwanted
    ]
    first = _check_k(selection.first_k, len(chosen), "--first-k")
    last = _check_k(selection.last_k, len(chosen), "--last-k")
    if first is not None:
        chosen = chosen[:first]
    if last is not None:
        chosen = chosen[-last:]
    return tuple(chosen)


def match(glob: str, layers: Iterable[Layer], *, option: str) -> list[str]:
    """The names of the layers that a name or glob matches, eligible or not.

    A name that occurs literally wins over its reading as a glob (names may hold brackets).
    """
    names = [layer.name for layer in layers]
    matches = [glob] if glob in names else [name for name in names if fnmatchcase(name, glob)]
    if not matches:
        near = get_close_matches(glob, names, n=3, cutoff=0.4) or names[:3]
        raise UsageError(
            f"no layer matches '{glob}'",
            where=option,
            hint=f"the nearest are {', '.join(near)}; `dacconv inspect` lists them all",
        )
    return matches


def _wanted(glob: str, layers: Sequence[Layer]) -> list[str]:
    names = match(glob, layers, option="--layers")
    skips = {layer.name: layer.skip for layer in layers}
    if all(skips[name] for name in names):
        raise UsageError(
            f"'{glob}' names only layers that cannot be split: {names[0]} is {skips[names[0]]}",
            where="--layers",
        )
    return names


def _check_k(k: int | None, available: int, option: str) -> int | None:
    if k is None:
        return None
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise UsageError(f"{k} is not a whole number above 0", where=option)
    if k > available:
        raise UsageError(
            f"{k} layers are asked for, but only {available} can be split",
            where=option,
            hint="`dacconv inspect` lists them and the reasons for the others",
        )
    return k
