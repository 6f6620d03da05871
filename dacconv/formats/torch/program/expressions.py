"""The grammar of size expressions in a .pt2, such as ``Add(Symbol('s0', integer=True), 1)``.

``torch.export.load`` evaluates them as Python. They are parsed here, not evaluated, and only
bounded arithmetic on symbols is let through.
"""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass

LONGEST = 2000
"""Characters of an expression."""
MOST_PARTS = 300
"""Numbers, symbols and operations of an expression."""
MOST_BITS = 256
"""Bits that the value of an expression may have if its symbols have one each."""
MOST_TERMS = 2000
"""Terms of an expression once its products and powers of sums are multiplied out."""

SYMBOL = re.compile(r"[a-z]{1,6}\d{1,6}(_\d{1,6})?", re.ASCII)

_FUNCTIONS = frozenset(
    {"Integer", "Float", "Rational", "Mod", "Min", "Max", "Abs", "Eq", "Ne", "Lt", "Le", "Gt",
     "Ge", "And", "Or", "Not", "FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv",
     "CeilToInt", "FloorToInt", "CeilDiv", "RShift", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat",
     "TruncToInt", "RoundToInt", "ToFloat", "Identity", "Add", "Mul", "StrictLessThan", "LessThan",
     "GreaterThan", "StrictGreaterThan", "Equality", "Unequality", "ceiling", "floor", "sqrt",
     "IsNonOverlappingAndDenseIndicator"}
)  # fmt: skip
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift"})
"""The second argument is a number."""
_SUMS = frozenset({"Add", "Min", "Max", "And", "Or", "Eq", "Ne", "Lt", "Le", "Gt", "Ge"})
_CONSTANTS = frozenset({"oo", "int_oo", "true", "false"})
_BINARY = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
_COMPARED = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)


class _RefusedError(Exception):
    """The expression is none of the grammar."""


@dataclass(frozen=True, slots=True)
class _Size:
    """Bounds: the bits of the value if symbols have one each, and the terms of its expansion."""

    bits: int
    terms: int

    def checked(self) -> _Size:
        """Itself; _RefusedError where it is too large."""
        if self.bits > MOST_BITS or self.terms > MOST_TERMS:
            raise _RefusedError
        return self


def safe_expression(text: str) -> bool:
    """Whether a size expression is bounded arithmetic on symbols and nothing else."""
    if len(text) > LONGEST or not text.isascii() or text.count("(") > MOST_PARTS:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
        if sum(1 for _ in ast.walk(tree)) > 4 * MOST_PARTS:
            return False
        _size(tree.body).checked()
    except (SyntaxError, ValueError, RecursionError, MemoryError, _RefusedError):
        return False
    return True


def _size(node: ast.expr) -> _Size:
    """Bounds on the value and on its expanded form; _RefusedError for what is not arithmetic."""
    match node:
        case ast.Constant(value=bool() | int() as value):
            return _Size(value.bit_length(), 1)
        case ast.Constant(value=float()):
            return _Size(64, 1)
        case ast.Name(id=name) if name in _CONSTANTS or SYMBOL.fullmatch(name):
            return _Size(1, 1)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not(), operand=operand):
            return _size(operand)
        case ast.BinOp(op=ast.Pow(), left=base, right=exponent):
            return _power(base, exponent)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _BINARY):
            return _joined([left, right], product=not isinstance(op, ast.Add | ast.Sub))
        case ast.BoolOp(values=values):
            return _joined(values, product=False)
        case ast.Compare(left=left, ops=ops, comparators=others):
            if all(isinstance(op, _COMPARED) for op in ops):
                return _joined([left, *others], product=False)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            return _call(name, args, keywords)
    raise _RefusedError


def _joined(nodes: list[ast.expr], *, product: bool) -> _Size:
    sizes = [_size(node) for node in nodes]
    if product:
        return _Size(sum(s.bits for s in sizes), math.prod(s.terms for s in sizes)).checked()
    bits = max(s.bits for s in sizes) + len(sizes).bit_length()
    return _Size(bits, sum(s.terms for s in sizes)).checked()


def _call(name: str, args: list[ast.expr], keywords: list[ast.keyword]) -> _Size:
    if name == "Symbol":
        return _symbol(args, keywords)
    if name == "Float" and args and isinstance(args[0], ast.Constant):
        return _float(args, keywords)
    if keywords:
        raise _RefusedError
    if name in _POWERS and len(args) == 2:
        return _power(*args)
    if name == "Rational" and not all(_is_number(arg) for arg in args):
        raise _RefusedError
    if name in _FUNCTIONS and 1 <= len(args) <= 16:
        return _joined(args, product=name not in _SUMS)
    raise _RefusedError


def _symbol(args: list[ast.expr], keywords: list[ast.keyword]) -> _Size:
    """``Symbol('s0', positive=True)``."""
    match args:
        case [ast.Constant(value=str() as name)] if SYMBOL.fullmatch(name):
            for each in keywords:
                assumed = isinstance(each.value, ast.Constant) and isinstance(
                    each.value.value, bool
                )
                if each.arg is None or not assumed:
                    raise _RefusedError
            return _Size(1, 1)
    raise _RefusedError


def _float(args: list[ast.expr], keywords: list[ast.keyword]) -> _Size:
    """``Float('0.5', precision=53)``."""
    match args[0]:
        case ast.Constant(value=str() as digits):
            if not re.fullmatch(r"[-+]?[\d.]{1,40}(e[-+]?\d{1,4})?", digits, re.ASCII):
                raise _RefusedError
        case ast.Constant(value=int() | float()):
            pass
        case _:
            raise _RefusedError
    for each in keywords:
        value = each.value.value if isinstance(each.value, ast.Constant) else None
        if each.arg != "precision" or not isinstance(value, int) or not 0 < value <= 128:
            raise _RefusedError
    if len(args) > 1:
        raise _RefusedError
    return _Size(64, 1)


def _power(base: ast.expr, exponent: ast.expr) -> _Size:
    """A power, or a shift to the left, by a number that is written out."""
    value: float
    match exponent:
        case ast.Call(func=ast.Name(id="Integer" | "Rational"), args=parts, keywords=[]) if parts:
            value = max(abs(_written(part)) for part in parts)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=digits), *_] as args):
            _float(args, exponent.keywords)
            value = abs(float(digits))  # type: ignore[arg-type]
        case _:
            value = abs(_written(exponent))
    if not value <= MOST_BITS:
        raise _RefusedError
    times = max(math.ceil(value), 1)
    size = _size(base)
    return _Size(max(size.bits, 1) * times, size.terms**times).checked()


def _is_number(node: ast.expr) -> bool:
    try:
        _written(node)
    except _RefusedError:
        return False
    return True


def _written(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as value)):
            return -value
    raise _RefusedError
