"""What a module holds, read where torch keeps it.

A network may have attributes of its own that are called ``modules``, ``parameters`` or ``to``:
torch runs and trains it, but ``net.modules()`` is then a call of that attribute. The functions
here read the registries themselves, and :func:`own_methods` lends torch its methods back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_METHODS = frozenset(name for name in dir(nn.Module) if callable(getattr(nn.Module, name)))


def named_modules(root: nn.Module, *, duplicates: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a tree with their names, each once unless ``duplicates``.

    Raises:
        RecursionError: with ``duplicates``, the tree contains itself.
    """
    yield from _walk(root, "", None if duplicates else set())


def _walk(module: nn.Module, name: str, past: set[int] | None) -> Iterator[tuple[str, nn.Module]]:
    if past is not None:
        if id(module) in past:
            return
        past.add(id(module))
    yield name, module
    for last, child in module._modules.items():
        if child is not None:
            yield from _walk(child, f"{name}.{last}" if name else last, past)


def modules(root: nn.Module) -> Iterator[nn.Module]:
    """The modules of a tree, each once."""
    return (module for _, module in named_modules(root))


def named_children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules right inside a module, with their names."""
    return ((name, child) for name, child in module._modules.items() if child is not None)


def children(module: nn.Module) -> Iterator[nn.Module]:
    """The modules right inside a module."""
    return (child for _, child in named_children(module))


def own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a module itself, without those of the modules inside it."""
    return ((name, p) for name, p in module._parameters.items() if p is not None)


def parameters(root: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of a tree, each once."""
    past: set[int] = set()
    for module in modules(root):
        for _, parameter in own_parameters(module):
            if id(parameter) not in past:
                past.add(id(parameter))
                yield parameter


def named_tensors(root: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter, then every buffer of a tree under all its names."""
    owners = list(named_modules(root, duplicates=True))
    for name, module in owners:
        for last, parameter in own_parameters(module):
            yield f"{name}.{last}" if name else last, parameter
    for name, module in owners:
        for last, buffer in module._buffers.items():
            if buffer is not None:
                yield f"{name}.{last}" if name else last, buffer


def submodule(root: nn.Module, path: str) -> nn.Module:
    """The module of a qualified name; ``""`` is the root.

    Raises:
        AttributeError: no module is registered under that name.
    """
    module = root
    for name in path.split(".") if path else ():
        child = module._modules.get(name)
        if child is None:
            raise AttributeError(f"{type(module).__name__} has no module '{name}'")
        module = child
    return module


@contextmanager
def own_methods(root: nn.Module) -> Iterator[None]:
    """Hide the values that modules keep under the names of torch's methods.

    For torch's own methods that call one another, as ``eval`` calls ``children``; the network's
    ``forward`` must not run meanwhile.
    """
    hidden: list[tuple[nn.Module, dict[str, object]]] = []
    try:
        for module in modules(root):
            shadows = [n for n, v in vars(module).items() if n in _METHODS and not callable(v)]
            if shadows:
                hidden.append((module, dict(vars(module))))
                for name in shadows:
                    del module.__dict__[name]
        yield
    finally:
        for module, before in hidden:
            now = dict(vars(module))
            module.__dict__.clear()  # the attributes keep their order, and so a pickle its bytes
            module.__dict__.update({**before, **now})
