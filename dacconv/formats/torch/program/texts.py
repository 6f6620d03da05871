"""What the texts of a .pt2 may be, field by field; a field that is not named here may have none.

torch puts names into Python code that it compiles, resolves operators by name and evaluates
expressions, so each has a grammar.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from dacconv.formats.torch.program.expressions import SYMBOL, safe_expression
from dacconv.formats.torch.program.operators import is_allowed

MOST_TEXT = 20_000

_NAME = re.compile(r"[^\W\d]\w{0,500}|")
_PATH = re.compile(r"[\w.@:/<>#$ -]{0,1000}")
_WORDS = re.compile(r"[\w .-]{0,200}")
_RECORD = re.compile(r"(weight|tensor)_\d{1,9}", re.ASCII)
_CODE_PATH = re.compile(r"[\w.]{1,500}")


class RefusedError(ValueError):
    """The program holds something that is not plainly data; the message says what."""


def match(pattern: re.Pattern[str], text: str) -> None:
    """RefusedError for a name that does not have the form of ``pattern``."""
    if not pattern.fullmatch(text):
        raise RefusedError(f"the name {text[:60]!a}")


def _name(text: str) -> None:
    match(_NAME, text)


def _path(text: str) -> None:
    match(_PATH, text)


def _words(text: str) -> None:
    match(_WORDS, text)


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


def plain_metadata(value: dict[str, Any]) -> dict[str, str]:
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


TEXTS: Mapping[str, Callable[[str], None]] = {
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

KEYS: Mapping[str, re.Pattern[str]] = {
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
