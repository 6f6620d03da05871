"""What an exported graph does beside its plain dataflow: constants it computes, calls in place.

A call in place makes a new value, which its argument, and what that is a view of, hold from
then on; a slice that is overwritten with a constant is one such call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from dacconv.formats.torch.program.ops import bind, is_constant_number, op_name

PURE = frozenset(
    {"add", "sub", "rsub", "mul", "div", "neg", "sqrt", "rsqrt", "exp", "reciprocal", "pow",
     "view", "reshape", "_unsafe_view", "expand", "unsqueeze", "squeeze", "permute", "transpose",
     "t", "slice", "select", "detach", "alias", "clone", "contiguous", "lift_fresh_copy", "to",
     "_to_copy", "type_as", "flatten", "eye", "zeros_like", "ones_like", "cat", "stack"}
)  # fmt: skip
"""Operators that make a constant of constants: no chance, no state."""

VIEWS = frozenset(
    {"slice", "select", "view", "reshape", "_unsafe_view", "expand", "unsqueeze", "squeeze",
     "permute", "transpose", "t", "detach", "alias", "narrow", "flatten", "unflatten", "diagonal",
     "as_strided", "view_as", "expand_as", "swapaxes", "movedim", "contiguous", "to", "detach_"}
)  # fmt: skip
"""Operators whose result may share the memory of their first argument."""


SIZED_AS = frozenset({"reshape_as", "view_as", "expand_as"})
"""Operators that take of their second argument nothing but its size."""


@dataclass(frozen=True, slots=True)
class Fill:
    """A slice of ``base`` along one axis that is overwritten with ``value``, one per channel."""

    base: fx.Node
    axis: int
    begin: int
    end: int
    value: torch.Tensor


def in_place(node: fx.Node) -> torch.FunctionSchema | None:
    """The schema of a call that changes one of its arguments; None of one that does not."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    return target._schema


def written(node: fx.Node) -> fx.Node | None:
    """The argument that a call changes in place, if it does."""
    schema = in_place(node)
    if schema is None:
        return None
    call = bind(node)
    for argument in schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            operand = call.get(argument.name)
            return operand if isinstance(operand, fx.Node) else None
    return None


def holders(node: fx.Node) -> list[fx.Node]:
    """The node and everything whose memory it may be a view of, itself first."""
    views = [node]
    while op_name(views[-1]) in VIEWS and views[-1].op == "call_function":
        first = views[-1].args[0]
        if not isinstance(first, fx.Node):
            break
        views.append(first)
    return views


def changed_later(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose value a call in place changes: they are no constants."""
    users: set[fx.Node] = set()
    for node in graph.nodes:
        target = written(node) if node.op == "call_function" else None
        if target is not None:
            users.update(holders(target))
    return users


def evaluate(
    node: fx.Node, constants: Mapping[fx.Node, torch.Tensor], changed: set[fx.Node]
) -> torch.Tensor | None:
    """The value of a call that follows from constants alone; None where it does not."""
    sources = node.all_input_nodes
    if op_name(node) not in PURE or not isinstance(node.target, torch._ops.OpOverload):
        return None
    if not sources or node in changed or any(source not in constants for source in sources):
        return None
    with torch.no_grad():
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: constants[n])
        value = node.target(*args, **kwargs)
    return value if isinstance(value, torch.Tensor) else None


def fill_of(node: fx.Node, constants: Mapping[fx.Node, torch.Tensor]) -> Fill | None:
    """What a ``copy_`` or ``fill_`` of a slice overwrites; None where it is something else."""
    name, call = op_name(node), bind(node)
    if name not in ("copy_", "fill_"):
        return None
    raw = call.get("src", call.get("value"))
    view = call["self"]
    if not isinstance(view, fx.Node) or op_name(view) != "slice":
        return None
    interval: tuple[int, int, int] | None = None
    while op_name(view) == "slice" and view.op == "call_function":
        part = _part(view)
        if part is None or (part[1:] != (0, -1) and interval is not None):
            return None
        interval = interval if part[1:] == (0, -1) else part
        view = view.args[0]
        if not isinstance(view, fx.Node):
            return None
    value = _per_channel(raw, node, constants)
    if interval is None or value is None:
        return None
    return Fill(view, *interval, value)


def is_part_of_fill(node: fx.Node, constants: Mapping[fx.Node, torch.Tensor]) -> bool:
    """Whether a slice is nothing but the place that a constant is written to."""
    if op_name(node) != "slice" or not node.users:
        return False
    return all(
        fill_of(user, constants) is not None
        if op_name(user) in ("copy_", "fill_")
        else is_part_of_fill(user, constants)
        for user in node.users
    )


def _part(view: fx.Node) -> tuple[int, int, int] | None:
    """``(axis, begin, end)`` of a slice; ``end`` -1 where it takes the whole axis."""
    call = bind(view)
    source = call["self"].meta.get("val")
    if call["step"] != 1 or not isinstance(source, torch.Tensor):
        return None
    axis = int(call["dim"]) % source.ndim
    size = source.shape[axis]
    begin, end = call["start"] or 0, call["end"]
    if not isinstance(begin, int) or not (end is None or isinstance(end, int)):
        return None
    if begin == 0 and (end is None or end >= 2**62):
        return axis, 0, -1
    if not isinstance(size, int):
        return None
    first, last, _ = slice(begin, end).indices(size)
    return (axis, 0, -1) if (first, last) == (0, size) else (axis, first, last)


def _per_channel(
    raw: object, node: fx.Node, constants: Mapping[fx.Node, torch.Tensor]
) -> torch.Tensor | None:
    """The constant that is written, one number per channel; None where it varies more."""
    result = node.meta.get("val")
    if isinstance(raw, (int, float)) and is_constant_number(raw):
        return torch.tensor([float(raw)], dtype=torch.float64)
    while isinstance(raw, fx.Node) and raw not in constants and op_name(raw) == "expand":
        raw = raw.args[0]
    if not isinstance(raw, fx.Node) or raw not in constants or not isinstance(result, torch.Tensor):
        return None
    value = constants[raw].to(torch.float64)
    value = value.reshape((1,) * (result.ndim - value.ndim) + tuple(value.shape))
    for axis in range(value.ndim):
        if axis != 1:
            first = value.narrow(axis, 0, 1)
            if not torch.equal(value, first.expand_as(value)):
                return None
            value = first
    return value.reshape(-1)
