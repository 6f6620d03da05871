"""What a run does where no torch function is called: compiled code, and tensors from elsewhere.

Code that was compiled (TorchScript, vmap, C++) calls operators, not torch functions, and a dispatch
mode sees these. Tensors that were there before the run, wherever they are kept, and those that are
made of numpy's arrays depend on no value of the run: they are constants. What is then still unknown
makes every merge doubtful, because it may depend on any value.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.dlpack
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

_CREATORS = (
    (torch, "from_numpy"),
    (torch, "frombuffer"),
    (torch, "from_dlpack"),
    (torch.utils.dlpack, "from_dlpack"),
)
"""Functions that make a tensor of memory that is not torch's; no torch function mode sees them."""


def tensors_elsewhere(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The plain tensors of this process, without those that share memory with ``inputs``.

    These are tensors in caches, closures, default arguments and deep structures, which a model's
    code may reach though they are in no attribute of a module.
    """
    taken = {_memory(tensor) for tensor in inputs}
    kinds = (torch.Tensor, nn.Parameter)
    found = [each for each in gc.get_objects() if type(each) in kinds]
    return [
        tensor
        for tensor in found
        if tensor.layout == torch.strided and tensor.numel() and _memory(tensor) not in taken
    ]


def _memory(tensor: torch.Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return id(tensor)


@contextmanager
def watching_creators(made: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Call ``made`` with every tensor that is made of an array or a buffer in the block."""
    originals = [getattr(home, name) for home, name in _CREATORS]

    def watched(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @functools.wraps(original)
        def create(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = original(*args, **kwargs)
            with torch._C.DisableTorchFunction():
                made(tensor)
            return tensor

        return create

    try:
        for (home, name), original in zip(_CREATORS, originals, strict=True):
            setattr(home, name, watched(original))
        yield
    finally:
        for (home, name), original in zip(_CREATORS, originals, strict=True):
            setattr(home, name, original)


class WatchedOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls ``seen`` after every operator, with its name, arguments, results and what it wrote."""

    def __init__(self, seen: Callable[[str, Any, Any, list[torch.Tensor]], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func).removeprefix("aten.").partition(".")[0]
        with torch._C.DisableTorchFunction():
            result = func(*args, **kwargs)
            if "empty" not in name:  # memory that code which cannot be seen may fill
                self._seen(name, (args, kwargs), result, list(_written(func, args, kwargs)))
        return result


def _written(func: Any, args: Sequence[Any], kwargs: Any) -> Iterator[torch.Tensor]:
    """The arguments that an operator writes to, by its schema."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            if isinstance(value, torch.Tensor):
                yield value
            elif isinstance(value, (list, tuple)):
                yield from (each for each in value if isinstance(each, torch.Tensor))
