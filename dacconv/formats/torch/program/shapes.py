"""The shapes that a .pt2 gives for its values, held against what its calls compute.

Everything that reads a program relies on them, and they are plain text in the file. The calls are
run on tensors without data, with the sizes that a dynamic size had when the program was exported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

_UNKNOWN = object()
"""A value that depends on data, or on what does."""
_DEPENDS = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
    NotImplementedError,
)


def check_shapes(program: ExportedProgram) -> None:
    """Check the values of a program's graph; those of graphs inside it are read by nothing.

    Raises:
        ValueError: a call cannot be made, or gives another shape or type than the file says.
    """
    values: dict[fx.Node, Any] = {}
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for node in program.graph.nodes:
            stated = pytree.tree_map(_at_export, node.meta.get("val", _UNKNOWN))
            computed = _computed(node, values) if node.op == "call_function" else _UNKNOWN
            if computed is not _UNKNOWN and not _same(computed, stated):
                raise ValueError(
                    f"its graph says that {node.name!a} is {_words(stated)}, and its calls give "
                    f"{_words(computed)}"
                )
            values[node] = stated if computed is _UNKNOWN else computed


def _computed(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """What a call gives; ValueError where it cannot be made."""
    arguments = pytree.tree_leaves([values[each] for each in node.all_input_nodes])
    if isinstance(node.target, torch._ops.HigherOrderOperator) or not callable(node.target):
        return _UNKNOWN
    if any(argument is _UNKNOWN for argument in arguments):
        return _UNKNOWN
    copies = {  # a call in place may change their shape
        each: pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, values[each])
        for each in node.all_input_nodes
    }
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: copies[each])
    try:
        return node.target(*args, **kwargs)
    except _DEPENDS:
        return _UNKNOWN
    except Exception as error:
        text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise ValueError(f"the call {node.name!a} cannot be made: {text}") from error


def _at_export(value: Any) -> Any:
    """A value with the sizes that it had when the program was exported."""
    if isinstance(value, torch.Tensor):
        sizes = [_at_export(size) for size in (*value.shape, *value.stride())]
        if any(size is _UNKNOWN for size in sizes):
            return _UNKNOWN
        rank = value.ndim
        return torch.empty_strided(
            sizes[:rank], sizes[rank:], dtype=value.dtype, device=value.device
        )
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        number = value.node.maybe_as_int() if isinstance(value, torch.SymInt) else None
        hint = value.node._hint if number is None else number
        return _UNKNOWN if hint is None else hint
    return value


def _same(computed: Any, stated: Any) -> bool:
    """Whether two values have the same type and shape, as far as both are known."""
    if stated is _UNKNOWN or stated is None or computed is None:
        return True
    if isinstance(stated, torch.Tensor):
        return (
            isinstance(computed, torch.Tensor)
            and computed.shape == stated.shape
            and computed.dtype == stated.dtype
        )
    if isinstance(stated, (tuple, list)):
        return (
            isinstance(computed, (tuple, list))
            and len(computed) == len(stated)
            and all(map(_same, computed, stated))
        )
    return not isinstance(computed, (torch.Tensor, tuple, list))


def _words(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        shape = "x".join(map(str, value.shape)) or "a single number"
        return f"{shape} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (tuple, list)):
        return f"{len(value)} values"
    return "unknown" if value is _UNKNOWN else str(value)[:50]
