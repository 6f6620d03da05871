"""The calls of a .pt2 held against the schemas of the operators that they call.

This happens before torch builds the program: torch drops arguments that an operator does not
have, takes others for what they are not, and its own errors name no place.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch._export.serde import schema

from dacconv.formats.torch.program.operators import overload_of, python_function

_SYMBOLS = {
    schema.SymIntArgument: "int",
    schema.SymFloatArgument: "float",
    schema.SymBoolArgument: "bool",
}
_SYMBOLIC = frozenset({"as_sym_int", "as_sym_float", "as_sym_bool"})
_NUMBERS = frozenset({"as_int", "as_float", "as_bool", *_SYMBOLIC})
_ACCEPTED: Mapping[str, frozenset[str]] = {
    "Tensor": frozenset({"as_tensor"}),
    "List[Tensor]": frozenset({"as_tensors"}),
    "List[Optional[Tensor]]": frozenset({"as_tensors", "as_optional_tensors"}),
    "int": frozenset({"as_int", "as_sym_int"}),
    "float": frozenset({"as_float", "as_int", "as_sym_float", "as_sym_int"}),
    "bool": frozenset({"as_bool", "as_sym_bool"}),
    "number": _NUMBERS | {"as_complex"},
    "complex": _NUMBERS | {"as_complex"},
    "str": frozenset({"as_string"}),
    "List[int]": frozenset({"as_ints", "as_sym_ints"}),
    "List[float]": frozenset({"as_floats", "as_sym_floats", "as_ints"}),
    "List[bool]": frozenset({"as_bools", "as_sym_bools"}),
    "List[number]": frozenset({"as_ints", "as_floats", "as_sym_ints", "as_sym_floats"}),
    "ScalarType": frozenset({"as_scalar_type"}),
    "Layout": frozenset({"as_layout"}),
    "MemoryFormat": frozenset({"as_memory_format"}),
    "Device": frozenset({"as_device"}),
}
"""The kinds of arguments in the file that a parameter of an operator takes."""

_TENSORS_ALONE = frozenset({"input", "weight", "bias", "running_mean", "running_var"})
_OPTIONAL = re.compile(r"Optional\[(.*)\]")
_CONV = re.compile(r"_?conv(_transpose)?([123]d|olution)")


@dataclass(frozen=True, slots=True)
class _Parameter:
    accepts: frozenset[str]
    required: bool
    count: int
    """How many numbers its list has; 0 or 1 where they may be any number."""


@dataclass(slots=True)
class _Scope:
    """The values of a graph that its calls can read: ``tensor``, ``int``, ``float`` or ``bool``."""

    graph: schema.Graph
    kinds: dict[str, str] = field(default_factory=dict)

    def add(self, argument: schema.Argument) -> None:
        """Add the values that an input of the graph, or a result of a call, stands for.

        Raises:
            ValueError: a name is taken, or the graph does not describe it.
        """
        for name, kind in _reads(argument):
            if name in self.kinds:
                raise ValueError(f"two values of its graph are named {name!a}")
            table = "tensor_values" if kind == "tensor" else f"sym_{kind}_values"
            if name not in getattr(self.graph, table):
                raise ValueError(f"its graph does not describe the value {name!a}")
            self.kinds[name] = kind

    def need(self, name: str, kind: str) -> None:
        """ValueError for a name that stands for nothing, or for a value of another kind."""
        if name not in self.kinds:
            raise ValueError(f"the value {name!a} is not computed before it is read")
        if self.kinds[name] != kind:
            raise ValueError(f"the value {name!a} is of the kind {self.kinds[name]}, not {kind}")


def check_calls(graph: schema.Graph) -> None:
    """Check the arguments of every call, and that it reads what was computed before.

    Raises:
        ValueError: a call does not fit its operator; the message names both.
    """
    scope = _Scope(graph)
    for argument in graph.inputs:
        scope.add(argument)
    for node in graph.nodes:
        try:
            _check_call(node, scope)
        except ValueError as error:
            raise ValueError(f"a call of {node.target} does not fit: {error}") from error
        for output in node.outputs:
            scope.add(output)
    for argument in graph.outputs:
        _check_reads(argument, scope)


def _reads(value: Any) -> Iterator[tuple[str, str]]:
    """The names and kinds of the values that an argument reads."""
    match value:
        case schema.TensorArgument(name=name):
            yield name, "tensor"
        case schema.SymIntArgument() | schema.SymFloatArgument() | schema.SymBoolArgument():
            if value.type == "as_name":
                yield value.as_name, _SYMBOLS[type(value)]
        case schema.Argument() | schema.OptionalTensorArgument():
            yield from _reads(value.value)
        case list() | dict():
            for each in value if isinstance(value, list) else value.values():
                yield from _reads(each)


def _check_reads(argument: schema.Argument, scope: _Scope) -> None:
    """Check that what an argument reads is there, and graphs inside it by themselves."""
    for name, kind in _reads(argument):
        scope.need(name, kind)
    if isinstance(argument.value, schema.GraphArgument):
        check_calls(argument.value.graph)


def _check_call(node: schema.Node, scope: _Scope) -> None:
    for each in node.inputs:
        _check_reads(each.arg, scope)
    overload = overload_of(node.target)
    if overload is None:
        function = python_function(node.target)
        if function is not None:
            _check_arity(node, function)
        return
    parameters = _parameters(overload)
    names = [each.name for each in node.inputs]
    for each in node.inputs:
        _check_argument(each, parameters)
    if names != [name for name in parameters if name in names]:
        raise ValueError("its arguments are not in order, or one is there twice")
    missing = [name for name, each in parameters.items() if each.required and name not in names]
    if missing:
        raise ValueError(f"its argument {missing[0]} is missing")
    returned = len(overload._schema.returns)
    if returned > 1 and len(node.outputs) != returned:
        raise ValueError(f"it has {len(node.outputs)} results, not {returned}")
    if _CONV.fullmatch(overload._schema.name.removeprefix("aten::")):
        _check_conv(node, overload, scope)


def _check_argument(argument: schema.NamedArgument, parameters: Mapping[str, _Parameter]) -> None:
    parameter = parameters.get(argument.name)
    if parameter is None:
        raise ValueError(f"it has no argument {argument.name!a}")
    kind, value = argument.arg.type, argument.arg.value
    if kind not in parameter.accepts and not (isinstance(value, list) and not value):
        raise ValueError(f"its argument {argument.name} is of the wrong kind ({kind[3:]})")
    count = len(value) if isinstance(value, list) else 1
    if parameter.count > 1 and count not in (0, 1, parameter.count):
        raise ValueError(f"its argument {argument.name} has {count} numbers, not {parameter.count}")


def _check_arity(node: schema.Node, function: Any) -> None:
    """Arithmetic on sizes: numbers alone, as many as the function takes."""
    for each in node.inputs:
        if each.arg.type not in _NUMBERS and each.arg.type != "as_sym_ints":
            raise ValueError(f"an argument is of the wrong kind ({each.arg.type[3:]})")
    try:
        inspect.signature(function).bind(*node.inputs)
    except TypeError as error:
        raise ValueError(str(error)) from error
    if len(node.outputs) != 1 or node.outputs[0].type not in _SYMBOLIC:
        raise ValueError("its result is not a number")


@cache
def _parameters(overload: torch._ops.OpOverload) -> Mapping[str, _Parameter]:
    result = {}
    for argument in overload._schema.arguments:
        kind = str(argument.real_type).replace("SymInt", "int")
        optional = _OPTIONAL.fullmatch(kind)
        accepts = _ACCEPTED.get(optional.group(1) if optional else kind, frozenset())
        if optional:
            accepts |= {"as_none"}
        if kind == "Tensor" and argument.name not in _TENSORS_ALONE:
            accepts |= _ACCEPTED["number"]  # a number stands for a tensor without axes
        count = getattr(argument, "N", None) or 0
        if count:
            accepts |= _NUMBERS
        result[argument.name] = _Parameter(accepts, not argument.has_default_value(), count)
    return result


def _check_conv(node: schema.Node, overload: torch._ops.OpOverload, scope: _Scope) -> None:
    """The numbers of a conv, as far as they are written out, and the shapes of its tensors."""
    call: dict[str, Any] = {a.name: a.default_value for a in overload._schema.arguments}
    call |= {each.name: each.arg.value for each in node.inputs if each.arg.type != "as_none"}
    sizes = {
        name: scope.graph.tensor_values[call[name].name].sizes
        for name in ("input", "weight", "bias")
        if isinstance(call[name], schema.TensorArgument)
    }
    axes = len(sizes["weight"]) - 2
    if axes < 1 or len(sizes["input"]) not in (axes + 1, axes + 2):
        raise ValueError("its input and weight do not have the axes of a conv")
    for name, lowest in (("stride", 1), ("dilation", 1), ("padding", 0), ("output_padding", 0)):
        numbers = _written(call.get(name, 1))
        if any(not lowest <= number < 1 << 31 for number in numbers):
            raise ValueError(f"its {name} is {numbers}, which no conv has")
        if len(numbers) not in (0, 1, axes):
            raise ValueError(f"its {name} has {len(numbers)} numbers for {axes} axes")
    if call["padding"] == "same" and any(number != 1 for number in _written(call["stride"])):
        raise ValueError("its padding is 'same', which only a conv of stride 1 has")
    if isinstance(call["padding"], str) and call["padding"] not in ("same", "valid"):
        raise ValueError(f"its padding is {call['padding'][:20]!a}, not 'same' or 'valid'")
    _check_channels(call, sizes, axes)


def _check_channels(call: Mapping[str, Any], sizes: Mapping[str, Any], axes: int) -> None:
    groups = call["groups"]
    if not isinstance(groups, int) or groups < 1:
        raise ValueError("its groups are not a whole number above 0")
    first, second, *kernel = _written(sizes["weight"]) if sizes["weight"] else (0, 0)
    transposed = "output_padding" in call and call.get("transposed", True)
    split = first if first % groups else 0
    if len(kernel) != axes or min(first, second, *kernel) < 0 or split:
        raise ValueError(f"its weight does not divide into {groups} groups")
    inputs, outputs = (first, second * groups) if transposed else (second * groups, first)
    channels = sizes["input"][-axes - 1]
    if channels.type == "as_int" and channels.as_int != inputs:
        raise ValueError(f"its input has {channels.as_int} channels, its weight takes {inputs}")
    if "bias" in sizes and _written(sizes["bias"]) != [outputs]:
        raise ValueError(f"its bias does not have its {outputs} output channels")


def _written(value: Any) -> list[int]:
    """The numbers of a value that are written out, not computed."""
    values: Sequence[Any] = value if isinstance(value, list) else [value]
    plain = [getattr(each, "as_int", None) if getattr(each, "type", "") == "as_int" else each
             for each in values]  # fmt: skip
    return [each for each in plain if isinstance(each, int)]
