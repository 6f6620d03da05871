"""What a call of a torch function means for the graph: its op, its attrs, its geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dacconv.formats.torch.convs import linear_geometry
from dacconv.graph.types import Geometry, Op

_HOMES = ("torch.nn.functional.", "torch.Tensor.", "torch.", "aten.")
_ADDS = {"add", "add_", "__add__", "__iadd__", "__radd__"}
_SUBS = {"sub", "sub_", "subtract", "subtract_", "__sub__", "__isub__"}
_CATS = {"cat", "concat", "concatenate"}
_IDENTITIES = {"clone", "contiguous", "detach", "dropout", "alias", "positive", "to", "type_as"}
_CONV_ARGS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_ARGS = (
    "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"
)  # fmt: skip
_POOL_ARGS = (
    "input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
    "divisor_override",
)  # fmt: skip

Call = Mapping[str, Any]


def short_name(name: str) -> str:
    """``torch.nn.functional.relu`` -> ``relu``; the name as it is from elsewhere."""
    for home in _HOMES:
        rest = name.removeprefix(home)
        if rest != name and "." not in rest:
            return rest
    return name


def bound(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """The arguments of a call by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def per_axis(value: Any, axes: int) -> tuple[int, ...]:
    """An argument that is one number, or one per axis."""
    if isinstance(value, int):
        return (value,) * axes
    listed = tuple(int(v) for v in value)
    return listed * axes if len(listed) == 1 else listed


def conv_call(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: torch.Tensor
) -> tuple[Op, Any, Geometry | None] | None:
    """``(op, weight, geometry)`` of a functional conv or linear call; None for other calls."""
    short = short_name(name)
    if short == "linear":
        call = bound(("input", "weight", "bias"), args, kwargs)
        weight = call["weight"]
        if weight.ndim != 2:
            return None
        return "linear", weight, linear_geometry(weight, call.get("bias") is not None, result)
    axes = {"1d": 1, "2d": 2, "3d": 3}.get(short[-2:], 0)
    if short == f"conv{axes}d":
        call = bound(_CONV_ARGS, args, kwargs)
        return "conv", call["weight"], _geometry(call, axes, result, transposed=False)
    if short == f"conv_transpose{axes}d":
        call = bound(_TRANSPOSED_ARGS, args, kwargs)
        return "conv_transpose", call["weight"], _geometry(call, axes, result, transposed=True)
    return None


def _geometry(call: Call, axes: int, result: torch.Tensor, *, transposed: bool) -> Geometry:
    weight, source = call["weight"], call["input"]
    groups = int(call.get("groups", 1))
    first, second = int(weight.shape[0]), int(weight.shape[1]) * groups
    return Geometry(
        in_channels=first if transposed else second,
        out_channels=second if transposed else first,
        kernel=tuple(weight.shape[2:]),
        stride=per_axis(call.get("stride", 1), axes),
        dilation=per_axis(call.get("dilation", 1), axes),
        groups=groups,
        bias=call.get("bias") is not None,
        input_size=tuple(source.shape[-axes:]),
        output_size=tuple(result.shape[-axes:]),
        batch=result.shape[0] if result.ndim == axes + 2 else 1,
        itemsize=weight.element_size(),
        transposed=transposed,
    )


def describe_call(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: torch.Tensor
) -> tuple[Op, Mapping[str, Any]]:
    """The op and attrs, as ``Node`` promises them, of a call that is no conv."""
    short = short_name(name)
    if short in _ADDS or short in _SUBS:
        return _addition(short, args, kwargs, result)
    if short in _CATS:
        call = bound(("tensors", "dim"), args, kwargs)
        return "concat", {"axis": int(call.get("dim", 0)) % result.ndim}
    if "pool" in short:
        return "pool", _pool(short, args, kwargs)
    if short == "pad":
        return _pad(bound(("input", "pad", "mode", "value"), args, kwargs), result)
    if short in ("permute", "transpose", "swapaxes"):
        return _transpose(short, args, kwargs, result)
    source = args[0] if args and isinstance(args[0], torch.Tensor) else None
    unchanged = source is not None and (source.shape, source.dtype) == (result.shape, result.dtype)
    if short in _IDENTITIES and unchanged:
        training = bound(("input", "p", "training"), args, kwargs).get("training", True)
        if short != "dropout" or not training:
            return "identity", {}
    return "other", {}


def _addition(
    short: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: torch.Tensor
) -> tuple[Op, Mapping[str, Any]]:
    call = bound(("input", "other"), args, kwargs)
    a, b, alpha = call.get("input"), call.get("other"), call.get("alpha", 1)
    for side in (a, b):
        if not isinstance(side, torch.Tensor) or side.shape != result.shape:
            return "other", {}
        if side.dtype != result.dtype:
            return "other", {}
    sign = -1.0 if short in _SUBS else 1.0
    return "add", {"coefficients": (1.0, sign * float(alpha))}


def _pool(short: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    if short not in ("avg_pool1d", "avg_pool2d", "avg_pool3d"):
        return {"kind": short.partition("_pool")[0]}
    axes = int(short[-2])
    call = bound(_POOL_ARGS, args, kwargs)
    if call.get("divisor_override") is not None:
        return {"kind": "average with another divisor"}
    kernel = per_axis(call["kernel_size"], axes)
    stride = call.get("stride")
    return {
        "kind": "average",
        "kernel": kernel,
        "stride": per_axis(stride, axes) if stride not in (None, (), []) else kernel,
        "padding": tuple((p, p) for p in per_axis(call.get("padding", 0), axes)),
        "dilation": (1,) * axes,
        "ceil_mode": bool(call.get("ceil_mode", False)),
        "count_include_pad": bool(call.get("count_include_pad", True)),
    }


def _pad(call: Call, result: torch.Tensor) -> tuple[Op, Mapping[str, Any]]:
    flat = [int(p) for p in call["pad"]]
    pairs = [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]  # the last axis first
    pads = [(0, 0)] * (result.ndim - len(pairs)) + pairs[::-1]
    value = call.get("value")
    return "pad", {
        "pads": tuple(pads),
        "mode": call.get("mode") or "constant",
        "value": 0.0 if value is None else float(value),
    }


def _transpose(
    short: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: torch.Tensor
) -> tuple[Op, Mapping[str, Any]]:
    axes = list(range(result.ndim))
    if short == "permute":
        given = kwargs.get("dims", args[1:])
        flat = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
        perm = tuple(int(d) % result.ndim for d in flat)
        return "transpose", {"perm": perm}
    call = bound(("input", "dim0", "dim1"), args, kwargs)
    if "dim0" not in call or "dim1" not in call:
        return "other", {}
    first, second = int(call["dim0"]) % result.ndim, int(call["dim1"]) % result.ndim
    axes[first], axes[second] = axes[second], axes[first]
    return "transpose", {"perm": tuple(axes)}
