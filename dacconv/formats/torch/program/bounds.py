"""Bounds on the numbers of a .pt2: tensors and whole numbers that its calls would make."""

from __future__ import annotations

import math
import typing

from torch._export.serde import schema

from dacconv.formats.torch.program.operators import ALLOCATING, name_of
from dacconv.formats.torch.program.texts import RefusedError

MOST_ELEMENTS = 1 << 31
"""Elements of a tensor that the numbers in a program may ask for."""


def check_numbers(graph: schema.Graph) -> None:
    """RefusedError for numbers that would make tensors or integers without bound."""
    bits: dict[str, int] = {}
    for node in graph.nodes:
        name = name_of(node.target)
        for argument in node.inputs:
            kind, value = argument.arg.type, argument.arg.value
            if kind == "as_graph":
                check_numbers(value.graph)
            numbers = [value] if kind == "as_int" and name in ALLOCATING else []
            if kind == "as_ints":
                numbers = [*value]
            elif kind == "as_sym_ints":
                numbers = [each.as_int for each in value if each.type == "as_int"]
            if math.prod(max(abs(n), 1) for n in numbers) > MOST_ELEMENTS:
                raise RefusedError(f"{node.target} of a tensor of {_count(numbers)} elements")
        if node.target.startswith(("_operator.", "torch.sym_", "torch._sym_", "math.")):
            _check_symbols(node, name, bits)


def _count(numbers: list[int]) -> str:
    return " x ".join(map(str, numbers[:8]))


def _check_symbols(node: schema.Node, name: str, bits: dict[str, int]) -> None:
    """Follow the length of whole numbers through the arithmetic on them."""
    sizes = [_argument_bits(each.arg, bits) for each in node.inputs]
    size = max(sizes, default=0) + 1
    if name == "mul":
        size = sum(sizes)
    elif name == "pow":
        power = node.inputs[1].arg if len(node.inputs) > 1 else None
        number = _literal(power)
        if number is None or not abs(number) <= 64:
            raise RefusedError("a power that is not a small number")
        size = sizes[0] * max(math.ceil(abs(number)), 1)
    if size > 4096:
        raise RefusedError("arithmetic on whole numbers of more than 4096 bits")
    for output in node.outputs:
        if output.type in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            bits[str(output.value.value)] = size


def _argument_bits(argument: schema.Argument, bits: dict[str, int]) -> int:
    if argument.type == "as_sym_int" and argument.value.type == "as_name":
        return bits.get(argument.value.value, 63)
    number = _literal(argument)
    return number.bit_length() if isinstance(number, int) else 63


def _literal(argument: schema.Argument | None) -> float | None:
    if argument is None:
        return None
    if argument.type in ("as_int", "as_float"):
        return typing.cast(float, argument.value)
    if argument.type == "as_sym_int" and argument.value.type == "as_int":
        return int(argument.value.value)
    return None
