"""What a run has made so far: its nodes, and the values that tensors hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dacconv.formats.torch.meaning import Meaning
from dacconv.formats.torch.module.names import Names
from dacconv.graph.types import Node

_VALUE = "_dacconv_value"
_WRITERS = frozenset(
    {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__ipow__",
     "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__", "__ifloordiv__", "__imod__"}
)  # fmt: skip


class Ledger:
    """The nodes of a run in order, written down as they are seen.

    A tensor carries the name of the value that it held when it was last seen, and when that was;
    writes are noted by memory, so that one through another view shows. ``counted`` are the
    parameters that were read; ``unseen`` is true once a tensor came from nobody knows where.
    """

    def __init__(self, names: Names) -> None:
        self.nodes: list[Node] = []
        self.counted: set[str] = set()
        self.unseen = False
        self._names = names
        self._taken: set[str] = set()
        self._reserved = set(names.modules.values())
        self._clock = 0
        self._writes: dict[int, tuple[int, str]] = {}  # storage -> (when, value) last written

    def name_value(self, tensor: torch.Tensor, value: str) -> None:
        """Give what ``tensor`` holds now a name; the tag dies with the tensor."""
        if self._names.tensor(tensor) is None:  # the model's own tensors must stay clean
            setattr(tensor, _VALUE, (value, self._clock))

    def known(self, tensor: torch.Tensor) -> str | None:
        """The value that ``tensor`` was last seen to hold."""
        tag = getattr(tensor, _VALUE, None)
        return None if tag is None else str(tag[0])

    def lookup(self, tensor: torch.Tensor) -> str | None:
        """The value that ``tensor`` holds now; None for the model's own constants."""
        written = self._writes.get(_storage(tensor))
        if self._names.tensor(tensor) is not None:
            return None if written is None else written[1]  # the run itself may change a buffer
        tag = getattr(tensor, _VALUE, None)
        if tag is None:
            self.unseen = True
            self.name_value(tensor, self.fresh("unseen"))
        elif written is not None and written[0] > tag[1]:  # changed through another view
            node = self.fresh(f"{tag[0].removesuffix(':0')}.view")
            self.emit(node, Meaning(), [tag[0], written[1]], [tensor], kind="view")
        return self.known(tensor)

    def emit(
        self,
        name: str,
        meaning: Meaning,
        inputs: Iterable[str],
        made: Sequence[torch.Tensor],
        *,
        kind: str,
        weight: str | None = None,
        params: int = 0,
    ) -> None:
        """Append a node that makes the values of the tensors ``made``."""
        self._clock += 1
        for index, tensor in enumerate(made):
            self.name_value(tensor, f"{name}:{index}")
        self.nodes.append(
            Node(
                name=name,
                op=meaning.op,
                inputs=tuple(inputs),
                output=f"{name}:0",
                shape=tuple(made[0].shape),
                kind=kind,
                weight=weight,
                geometry=meaning.geometry,
                skip=meaning.skip,
                params=params,
                attrs=meaning.attrs,
            )
        )

    def fresh(self, wish: str, *, module: bool = False) -> str:
        """A node name that is free; the bare names of modules are kept for their own calls."""
        name, count = wish, 1
        while name in self._taken or (not module and name in self._reserved):
            count += 1
            name = f"{wish}@{count}"
        self._taken.add(name)
        return name

    def count(self, constant: str, tensor: torch.Tensor) -> int:
        """The parameters of a constant, once."""
        if constant in self.counted or not isinstance(tensor, nn.Parameter):
            return 0
        self.counted.add(constant)
        return tensor.numel()

    def is_constant(self, tensor: torch.Tensor) -> bool:
        """Whether it is one of the model's own tensors, which the run has not written to."""
        named = self._names.tensor(tensor) is not None
        return named and _storage(tensor) not in self._writes

    def written(self, tensor: torch.Tensor, node: str) -> None:
        """Note that a node wrote to the memory of ``tensor``."""
        self._writes[_storage(tensor)] = (self._clock, self.known(tensor) or f"{node}:0")


def _storage(tensor: torch.Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return id(tensor)


def version_of(tensor: torch.Tensor) -> int | None:
    """How often it was written to; None under inference mode, where torch does not count."""
    return None if tensor.is_inference() else tensor._version


def writes(func: Any, tensor: torch.Tensor, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call writes to a tensor, going by its name."""
    name = str(getattr(func, "__name__", ""))
    in_place = name.endswith("_") != name.endswith("__") or name in _WRITERS
    given = kwargs.get("out")
    out = given if isinstance(given, (tuple, list)) else (given,)
    return (in_place and bool(args) and args[0] is tensor) or any(o is tensor for o in out)
