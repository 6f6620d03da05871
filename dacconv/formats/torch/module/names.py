"""The names of a module tree: which module is called what, and whose tensor a tensor is."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import nn

from dacconv.formats.torch.members import modules, named_modules, named_tensors


@dataclass(frozen=True, slots=True)
class Names:
    """The qualified names of a module tree: the first name of each module and tensor.

    The tensors are parameters, buffers, and what plain attributes hold; ``alive`` keeps them, so
    that no other tensor comes to lie in their memory.
    """

    modules: Mapping[int, str]
    tensors: Mapping[tuple[Any, ...], str]
    held: Mapping[str, str] = field(default_factory=dict)
    alive: tuple[torch.Tensor, ...] = ()

    @classmethod
    def of(cls, root: nn.Module, others: Sequence[torch.Tensor] = ()) -> Names:
        """The names in the tree under ``root``, and of ``others`` that are no part of it."""
        modules = {id(module): name for name, module in named_modules(root)}
        tensors: dict[tuple[Any, ...], str] = {}
        alive: list[torch.Tensor] = []
        outside = ((f"a tensor outside the module ({i})", t) for i, t in enumerate(others))
        for name, tensor in (*named_tensors(root), *loose_tensors(root), *outside):
            tensors.setdefault(tensor_key(tensor), name)
            alive.append(tensor)
        return cls(modules, tensors, held_outside(root), tuple(alive))

    def tensor(self, tensor: torch.Tensor) -> str | None:
        """The name of a tensor that the module held before the run; None for any other."""
        return self.tensors.get(tensor_key(tensor))


def tensor_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    """The same for tensors that are the same memory, seen in the same way."""
    if tensor.layout != torch.strided or tensor.numel() == 0:
        return (id(tensor),)
    try:
        place = id(tensor) if tensor.is_meta else tensor.data_ptr()
        return (place, tuple(tensor.shape), tensor.stride(), tensor.dtype)
    except RuntimeError:  # under vmap and the like there is no memory to point to
        return (id(tensor),)


def loose_tensors(root: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in plain attributes, with names: of the modules, their classes and their code."""
    homes: dict[str, object] = {}
    for path, module in named_modules(root):
        for kind in type(module).__mro__:
            if not kind.__module__.startswith(("torch.", "builtins")):
                homes[f"{kind.__module__}.{kind.__qualname__}"] = dict(vars(kind))
                code = vars(sys.modules.get(kind.__module__, object)) or {}
                homes[kind.__module__] = {
                    name: value
                    for name, value in code.items()
                    if isinstance(value, (torch.Tensor, list, tuple, dict))
                }
        registries = ("_modules", "_parameters", "_buffers")
        own = {name: value for name, value in vars(module).items() if name not in registries}
        for name, value in own.items():
            homes[f"{path}.{name}" if path else name] = value
    for name, value in homes.items():
        for tensor in _tensors_in(value, depth=4):
            yield name, tensor


def _tensors_in(value: object, depth: int) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, nn.Module) or not depth:
        return
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _tensors_in(item, depth - 1)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item, depth - 1)
    elif hasattr(value, "__dict__") and not isinstance(value, (type, ModuleType)):
        yield from _tensors_in(dict(vars(value)), depth - 1)


def held_outside(root: nn.Module) -> dict[str, str]:
    """Modules that a plain attribute holds too, where a replacement would not reach them."""
    names = {id(module): name for name, module in named_modules(root)}
    held: dict[str, str] = {}
    for owner in modules(root):
        for attribute, value in vars(owner).items():
            if attribute not in ("_modules", "_parameters", "_buffers"):
                for found in _modules_in(value, depth=3):
                    if id(found) in names:
                        where = ".".join(filter(None, (names[id(owner)], attribute)))
                        held.setdefault(names[id(found)], where)
    return held


def _modules_in(value: object, depth: int) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield value
    elif depth and isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _modules_in(item, depth - 1)
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from _modules_in(item, depth - 1)
