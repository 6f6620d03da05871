"""The names of a module tree: which module is called what, and whose tensor a tensor is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dacconv.formats.torch.members import modules, named_modules, named_tensors


@dataclass(frozen=True, slots=True)
class Names:
    """The qualified names of a module tree: the first name of each module and tensor."""

    modules: Mapping[int, str]
    tensors: Mapping[tuple[Any, ...], str]
    held: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, root: nn.Module) -> Names:
        """The names in the tree under ``root``."""
        modules = {id(module): name for name, module in named_modules(root)}
        tensors: dict[tuple[Any, ...], str] = {}
        for name, tensor in named_tensors(root):
            tensors.setdefault(tensor_key(tensor), name)
        return cls(modules, tensors, held_outside(root))

    def tensor(self, tensor: torch.Tensor) -> str | None:
        """The name of a parameter or buffer; None for any other tensor."""
        return self.tensors.get(tensor_key(tensor))


def tensor_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    """The same for tensors that are the same memory, seen in the same way."""
    if tensor.layout != torch.strided or tensor.numel() == 0:
        return (id(tensor),)
    try:
        return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
    except RuntimeError:  # under vmap and the like there is no memory to point to
        return (id(tensor),)


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
