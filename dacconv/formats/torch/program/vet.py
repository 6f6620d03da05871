"""Looking a .pt2 archive over before torch opens it.

``torch.export.load`` unpickles records, evaluates size expressions and compiles the names that
it finds, so a crafted archive could run code. Here every record that is code or may hold it is
read as data first; what is not plainly harmless is refused.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dacconv.formats.torch.files.pickles import wanted_in

_NAME = re.compile(r"[^\W\d]\w*|")
_PATH = re.compile(r"[\w.@:/<>#$ -]*")
_TARGET = re.compile(r"torch\.ops\.\w+(\.\w+)*|_operator\.\w+|math\.\w+|torch\._?sym_\w+")
_SYMBOL = re.compile(r"[a-z]{1,6}\d+(_\d+)?")
_FUNCTIONS = frozenset(
    {"Symbol", "Integer", "Float", "Rational", "Mod", "Min", "Max", "Pow", "Abs", "Eq", "Ne",
     "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Piecewise", "FloorDiv", "ModularIndexing",
     "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift",
     "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt",
     "RoundToInt", "RoundDecimal", "ToFloat", "Identity", "Add", "Mul", "StrictLessThan",
     "LessThan", "GreaterThan", "StrictGreaterThan", "Equality", "Unequality", "ceiling", "floor",
     "sqrt", "oo", "int_oo", "IsNonOverlappingAndDenseIndicator"}
)  # fmt: skip
_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp,
    ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
    ast.Tuple,
)  # fmt: skip


def dangers(path: Path) -> tuple[str, ...]:
    """What opening the archive would run, in words; empty for one that is plain data.

    Raises:
        zipfile.BadZipFile, ValueError, KeyError: a damaged archive.
    """
    with zipfile.ZipFile(path) as archive:
        return tuple(dict.fromkeys(_dangers(archive)))


def _dangers(archive: zipfile.ZipFile) -> Iterator[str]:
    pickled: set[str] = set()
    names = {name.partition("/")[2]: name for name in archive.namelist()}
    names |= {name: name for name in archive.namelist() if name.startswith("serialized_")}
    for short, name in names.items():
        if short.startswith("data/aotinductor/") or name.endswith((".so", ".o", ".cubin")):
            yield f"compiled code ({short})"
        elif short.startswith("data/constants/") and "_obj" in short.rpartition("/")[2]:
            yield f"an object of a custom class ({short})"
        elif short.endswith("_config.json"):
            pickled |= {
                short.rpartition("/")[0] + "/" + str(entry.get("path_name"))
                for entry in json.loads(archive.read(name)).get("config", {}).values()
                if entry.get("use_pickle")
            }
        elif short.endswith(".json") and (short.startswith(("models/", "serialized_exported"))):
            yield from _in_program(json.loads(archive.read(name)), "")
        elif short.endswith(".pt"):
            pickled.add(short)
    for short in sorted(pickled):
        if short not in names:
            raise KeyError(f"record {short} is missing")
        for wanted in wanted_in(archive.read(names[short])):
            yield f"{wanted} (in {short})"


def _in_program(value: Any, key: str) -> Iterator[str]:
    """The dangers in the JSON of a program, wherever they are."""
    if isinstance(value, dict):
        if "target" in value and "inputs" in value and not _TARGET.fullmatch(str(value["target"])):
            yield f"a call of {value['target']}"
        for name, item in value.items():
            yield from _in_program(item, name)
            if key in ("tensor_values", "sym_int_values", "sym_bool_values", "range_constraints"):
                yield from _checked(_NAME, name)
    elif isinstance(value, list):
        for item in value:
            yield from _in_program(item, key)
    elif isinstance(value, str):
        yield from _in_text(value, key)


def _in_text(text: str, key: str) -> Iterator[str]:
    """The dangers in one string, by the key that it has."""
    if key == "expr_str" and not safe_expression(text):
        yield f"the expression {text[:60]!r}"
    elif key in ("in_spec", "out_spec") and "__enum__" in text:
        yield "a class of its own among the inputs or outputs"
    elif key in ("name", "as_name", "forward_arg_names"):
        yield from _checked(_NAME, text)
    elif key == "fqn" or key.endswith("_name"):
        yield from _checked(_PATH, text)


def _checked(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    if not pattern.fullmatch(text):
        yield f"the name {text[:60]!r}"


def safe_expression(text: str) -> bool:
    """Whether a size expression is arithmetic on symbols and nothing else."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            return False
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
            return False
        if isinstance(node, ast.Name):
            if node.id not in _FUNCTIONS and not _SYMBOL.fullmatch(node.id):
                return False
        elif isinstance(node, ast.Constant) and not _plain_constant(node.value):
            return False
    return True


def _plain_constant(value: object) -> bool:
    if isinstance(value, str):
        return _NAME.fullmatch(value) is not None
    return not isinstance(value, bytes)
