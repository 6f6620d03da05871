"""Arithmetic with constants in a module's own code: ``x * self.gamma``, ``x + 0``, ``-x``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dacconv.formats.torch.convs import to_numpy
from dacconv.formats.torch.module.functions import bound, short_name
from dacconv.graph.types import Affine, FloatArray

_KINDS: Mapping[str, str] = {
    "add": "add", "sub": "sub", "subtract": "sub", "mul": "mul", "multiply": "mul",
    "div": "div", "divide": "div", "true_divide": "div", "truediv": "div",
    "rsub": "rsub", "radd": "add", "rmul": "mul", "neg": "neg", "negative": "neg",
    "iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "idiv": "div",
}  # fmt: skip
OF_CONSTANTS = frozenset(
    {*_KINDS, "view", "reshape", "unsqueeze", "squeeze", "expand", "detach", "clone", "to",
     "type_as", "sqrt", "rsqrt", "exp", "contiguous", "getitem", "flatten"}
)  # fmt: skip
"""Calls that make a constant of constants."""

Number = int | float


def arithmetic_kind(name: str) -> str | None:
    """``add``, ``sub``, ``rsub``, ``mul``, ``div`` or ``neg``; None for other calls."""
    return _KINDS.get(short_name(name).strip("_"))


def constant_affine(
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    result: torch.Tensor,
    is_constant: Callable[[torch.Tensor], bool],
) -> tuple[Affine, int] | None:
    """The affine per channel that a call computes, and its axis; None where it is none."""
    kind = arithmetic_kind(name)
    call = bound(("input", "other"), args, kwargs)
    first, other = call.get("input"), call.get("other", 1)
    alpha = call.get("alpha", 1)
    if kind is None or call.get("rounding_mode") or not isinstance(alpha, Number):
        return None
    sides = [first] if kind == "neg" else [first, other]
    data = [s for s in sides if isinstance(s, torch.Tensor) and not is_constant(s)]
    if len(data) != 1 or data[0].shape != result.shape or data[0].dtype != result.dtype:
        return None
    swapped = kind != "neg" and data[0] is other and data[0] is not first
    if not result.is_floating_point() or (kind == "div" and swapped):
        return None
    constant = _constant(first if swapped else other, result)
    if constant is None:
        return None
    value, axis = constant
    return arithmetic_affine(kind, value, float(alpha), swapped=swapped), axis


def _constant(raw: Any, result: torch.Tensor) -> tuple[FloatArray, int] | None:
    if isinstance(raw, Number):
        return np.asarray(float(raw)), 1
    if not isinstance(raw, torch.Tensor) or raw.ndim > result.ndim:
        return None
    shape = (1,) * (result.ndim - raw.ndim) + tuple(raw.shape)
    wide = [axis for axis, size in enumerate(shape) if size != 1]
    if len(wide) > 1:
        return None
    values = to_numpy(raw).astype(np.float64).reshape(-1 if wide else ())
    return np.array(values), next(iter(wide), 1)


def arithmetic_affine(
    kind: str | None, value: FloatArray, alpha: float, *, swapped: bool
) -> Affine:
    """What ``neg``, ``mul``, ``div``, ``add``, ``sub`` or ``rsub`` with a constant does.

    ``swapped``: the constant is the first operand.
    """
    one, zero = np.ones_like(value), np.zeros_like(value)
    if kind == "neg":
        return Affine(-one, zero)
    if kind == "mul":
        return Affine(value, zero)
    if kind == "div":
        return Affine(1 / value, zero)
    if kind == "rsub":  # other - alpha * self
        return Affine(one, -alpha * value) if swapped else Affine(-alpha * one, value)
    sign = -alpha if kind == "sub" else alpha  # self + sign * other
    return Affine(sign * one, value) if swapped else Affine(one, sign * value)
