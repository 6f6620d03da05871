"""The JSON of a .pt2 as torch's schema classes, every value of it held against an allow-list.

The classes of ``torch._export.serde.schema`` say which fields there are and of what kinds; fields
that they lack are dropped. What a text may be is said here for each field: a field that is not
named here may not have any. torch puts names into Python code that it compiles, resolves
operators by name and evaluates expressions, so each has a grammar.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from enum import IntEnum
from functools import cache
from typing import Any

from torch._export.serde import schema
from torch._export.serde.union import _Union

from dacconv.formats.torch.program.expressions import SYMBOL, safe_expression
from dacconv.formats.torch.program.operators import ALLOCATING, is_allowed, name_of
from dacconv.support.json_values import unique_keys

MOST_JSON = 64 << 20
"""Bytes of a JSON record."""
MOST_ELEMENTS = 1 << 31
"""Elements of a tensor that the numbers in a program may ask for."""
MOST_TEXT = 20_000
_DEEPEST = 8
"""How deep graphs may lie in graphs."""

_NAME = re.compile(r"[^\W\d]\w{0,500}|")
_PATH = re.compile(r"[\w.@:/<>#$ -]{0,1000}")
_WORDS = re.compile(r"[\w .-]{0,200}")
_RECORD = re.compile(r"(weight|tensor)_\d{1,9}", re.ASCII)
_CODE_PATH = re.compile(r"[\w.]{1,500}")


class RefusedError(ValueError):
    """The program holds something that is not plainly data; the message says what."""


def read_json(data: bytes | bytearray) -> Any:
    """Parse JSON; ValueError where it is damaged or names a key twice."""
    return json.loads(data.decode("utf-8"), object_pairs_hook=unique_keys)


def read_program(data: bytes | bytearray) -> schema.ExportedProgram:
    """The program of a ``models/model.json``, without its guards, which are code.

    Raises:
        RefusedError: it holds something that is not plainly data.
        ValueError: it is damaged.
    """
    program = _read(schema.ExportedProgram, read_json(data), "program", 0)
    program.guards_code = []
    _check_numbers(program.graph_module.graph)
    return typing.cast(schema.ExportedProgram, program)


def read_payload(data: bytes | bytearray) -> dict[str, schema.PayloadMeta]:
    """What a ``*_config.json`` says of the tensors of an archive, by name.

    Raises:
        RefusedError: it holds something that is not plainly data.
        ValueError: it is damaged.
    """
    config = _read(schema.PayloadConfig, read_json(data), "weights", 0).config
    return typing.cast(dict[str, schema.PayloadMeta], config)


def _read(kind: Any, value: Any, place: str, depth: int) -> Any:
    """``value`` as an object of the type that the schema gives; ``place`` is ``Class.field``."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _read(kind.__origin__, value, place, depth)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (each for each in typing.get_args(kind) if each is not type(None))
        return None if value is None else _read(inner, value, place, depth)
    if origin is list:
        (inner,) = typing.get_args(kind)
        return [_read(inner, each, place, depth) for each in _of(list, value, place)]
    if origin is dict:
        return _mapping(typing.get_args(kind)[1], _of(dict, value, place), place, depth)
    if isinstance(kind, type) and issubclass(kind, _Union):
        return _union(kind, _of(dict, value, place), depth)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, _of(dict, value, place), depth)
    return _leaf(kind, value, place)


def _of(kind: type, value: Any, place: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{place} in its JSON is not a {kind.__name__}")
    return value


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    return typing.get_type_hints(kind, globalns=vars(schema))


def _mapping(inner: Any, value: dict[str, Any], place: str, depth: int) -> dict[str, Any]:
    if place in _DROPPED:
        return {}
    if place == "Node.metadata":
        return _metadata(value)
    if place not in _KEYS:
        if value:
            raise RefusedError(f"entries of {place}")
        return {}
    for key in value:
        _match(_KEYS[place], key)
    return {key: _read(inner, each, place, depth) for key, each in value.items()}


def _union(kind: Any, value: dict[str, Any], depth: int) -> Any:
    """A value of one of several kinds, which the only key names."""
    hints = _hints(kind)
    if len(value) != 1 or next(iter(value)) not in hints:
        raise ValueError(f"{kind.__name__} in its JSON is of no kind that is known")
    ((name, inner),) = value.items()
    place = f"{kind.__name__}.{name}"
    if place in _REFUSED:
        raise RefusedError(_REFUSED[place])
    return kind.create(**{name: _read(hints[name], inner, place, depth)})


def _dataclass(kind: Any, value: dict[str, Any], depth: int) -> Any:
    if kind is schema.Graph:
        depth += 1
        if depth > _DEEPEST:
            raise RefusedError(f"graphs in graphs, more than {_DEEPEST} deep")
    hints = _hints(kind)
    known = {
        each.name: _read(hints[each.name], value[each.name], f"{kind.__name__}.{each.name}", depth)
        for each in dataclasses.fields(kind)
        if each.name in value
    }
    try:
        return kind(**known)
    except TypeError as error:
        raise ValueError(f"its JSON lacks parts: {error}") from error


def _leaf(kind: Any, value: Any, place: str) -> Any:
    """A number, a switch or a text."""
    if kind is bool:
        return _of(bool, value, place)
    if kind is float:
        if isinstance(value, str) and value in ("Infinity", "-Infinity", "NaN"):
            return float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{place} in its JSON is not a number")
        return float(value)
    if isinstance(kind, type) and issubclass(kind, int):
        if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
            raise ValueError(f"{place} in its JSON is not a whole number of 64 bits")
        if issubclass(kind, IntEnum):
            kind(value)  # ValueError for one that is not known
        return value
    if kind is str:
        if place not in _TEXTS:
            raise RefusedError(f"text in {place}")
        _TEXTS[place](_of(str, value, place))
        return value
    raise ValueError(f"{place} in its JSON is of a kind that is not known")


def _match(pattern: re.Pattern[str], text: str) -> None:
    if not pattern.fullmatch(text):
        raise RefusedError(f"the name {text[:60]!a}")


def _name(text: str) -> None:
    _match(_NAME, text)


def _path(text: str) -> None:
    _match(_PATH, text)


def _words(text: str) -> None:
    _match(_WORDS, text)


def _text(text: str) -> None:
    if len(text) > MOST_TEXT:
        raise RefusedError(f"a text of {len(text):,} characters")


def _target(text: str) -> None:
    if not is_allowed(text):
        raise RefusedError(f"a call of {text[:100]!a}")


def _expression(text: str) -> None:
    if not safe_expression(text):
        raise RefusedError(f"the expression {text[:60]!a}")


def _device(text: str) -> None:
    if text not in ("cpu", "cuda", "meta", "mps", "xpu"):
        raise RefusedError(f"the device {text[:60]!a}")


def _record(text: str) -> None:
    if not _RECORD.fullmatch(text):
        raise RefusedError(f"a constant that is no plain tensor ({text[:60]!a})")


def _verifier(text: str) -> None:
    if text not in ("ATEN", "TRAINING", "EDGE"):
        raise RefusedError(f"the verifier {text[:60]!a}")


def _tree(text: str) -> None:
    """The structure of inputs or outputs: tuples, lists and dicts of values."""
    _text(text)
    try:
        protocol, node = json.loads(text)
        _tree_node(node)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RefusedError("a class of its own among the inputs or outputs") from error
    if protocol != 1:
        raise RefusedError("inputs or outputs in a structure that is not known")


def _tree_node(node: Any) -> None:
    if not isinstance(node, dict) or node.keys() != {"type", "context", "children_spec"}:
        raise ValueError
    kind, context, children = node["type"], node["context"], node["children_spec"]
    if kind is None:
        if context is not None or children != []:
            raise ValueError
        return
    if kind not in ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"):
        raise ValueError
    keys = json.loads(context)
    if keys is not None and not (
        isinstance(keys, list) and all(isinstance(key, (str, int)) for key in keys)
    ):
        raise ValueError
    for child in children:
        _tree_node(child)


def _metadata(value: dict[str, Any]) -> dict[str, str]:
    """What a node says of where it comes from; only what names modules and functions is kept."""
    result: dict[str, str] = {}
    for key in ("stack_trace", "nn_module_stack", "torch_fn"):
        text = value.get(key)
        if isinstance(text, str) and len(text) <= MOST_TEXT:
            result[key] = text
    if "nn_module_stack" in result and not all(
        len(_split(item)) == 3 for item in result["nn_module_stack"].split(";")
    ):
        del result["nn_module_stack"]
    functions = value.get("source_fn_stack")
    if isinstance(functions, str) and len(functions) <= MOST_TEXT:
        parts = [item.split(",") for item in functions.split(";")]
        if all(len(p) == 2 and _CODE_PATH.fullmatch(p[1]) and "__" not in p[1] for p in parts):
            result["source_fn_stack"] = functions
    return result


def _split(item: str) -> list[str]:
    """A text at its commas that are in no brackets, as torch splits it."""
    parts, depth = [""], 0
    for character in item:
        depth += (character in "[(") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


_TEXTS: Mapping[str, Callable[[str], None]] = {
    "TensorArgument.name": _name,
    "SymIntArgument.as_name": _name,
    "SymFloatArgument.as_name": _name,
    "SymBoolArgument.as_name": _name,
    "GraphArgument.name": _name,
    "NamedArgument.name": _name,
    "Node.name": _name,
    "InputToConstantInputSpec.name": _name,
    "ModuleCallSignature.forward_arg_names": _name,
    "InputToParameterSpec.parameter_name": _path,
    "InputToBufferSpec.buffer_name": _path,
    "InputToTensorConstantSpec.tensor_constant_name": _path,
    "BufferMutationSpec.buffer_name": _path,
    "ParameterMutationSpec.parameter_name": _path,
    "GradientToParameterSpec.parameter_name": _path,
    "GradientToUserInputSpec.user_input_name": _path,
    "UserInputMutationSpec.user_input_name": _path,
    "ModuleCallEntry.fqn": _path,
    "Node.target": _target,
    "Argument.as_operator": _target,
    "SymExpr.expr_str": _expression,
    "Device.type": _device,
    "PayloadMeta.path_name": _record,
    "ModuleCallSignature.in_spec": _tree,
    "ModuleCallSignature.out_spec": _tree,
    "Argument.as_string": _text,
    "Argument.as_strings": _text,
    "ConstantValue.as_string": _text,
    "ExportedProgram.torch_version": _text,
    "ExportedProgram.verifiers": _verifier,
    "ExportedProgram.guards_code": lambda text: None,  # dropped
}
"""What the text of a field may be."""

_KEYS: Mapping[str, re.Pattern[str]] = {
    "Graph.tensor_values": _NAME,
    "Graph.sym_int_values": _NAME,
    "Graph.sym_float_values": _NAME,
    "Graph.sym_bool_values": _NAME,
    "ExportedProgram.opset_version": _NAME,
    "ExportedProgram.range_constraints": SYMBOL,
    "Argument.as_string_to_argument": _NAME,
    "PayloadConfig.config": _PATH,
}
"""What the keys of a mapping may be."""

_DROPPED = frozenset({"GraphModule.metadata", "GraphModule.treespec_namedtuple_fields"})
"""Mappings that nothing here needs."""

_REFUSED: Mapping[str, str] = {
    "Argument.as_custom_obj": "an object of a custom class",
    "InputSpec.custom_obj": "an object of a custom class",
    "InputSpec.token": "an effect token",
    "OutputSpec.token": "an effect token",
}


def _check_numbers(graph: schema.Graph) -> None:
    """RefusedError for numbers that would make tensors or integers without bound."""
    bits: dict[str, int] = {}
    for node in graph.nodes:
        name = name_of(node.target)
        for argument in node.inputs:
            kind, value = argument.arg.type, argument.arg.value
            if kind == "as_graph":
                _check_numbers(value.graph)
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
        if number is None or abs(number) > 64:
            raise RefusedError("a power that is not a small number")
        size = sizes[0] * max(abs(number), 1)
    if size > 4096:
        raise RefusedError("arithmetic on whole numbers of more than 4096 bits")
    for output in node.outputs:
        if output.type in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            bits[str(output.value.value)] = size


def _argument_bits(argument: schema.Argument, bits: dict[str, int]) -> int:
    if argument.type == "as_sym_int" and argument.value.type == "as_name":
        return bits.get(argument.value.value, 63)
    number = _literal(argument)
    return 63 if number is None else number.bit_length()


def _literal(argument: schema.Argument | None) -> int | None:
    if argument is None:
        return None
    if argument.type == "as_int":
        return int(argument.value)
    if argument.type == "as_sym_int" and argument.value.type == "as_int":
        return int(argument.value.value)
    return None
