"""What an aten call in an exported graph means: its op, attrs and geometry."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import fx

from dacconv.formats.torch.module.functions import per_axis
from dacconv.graph.types import Geometry, Op

Call: TypeAlias = Mapping[str, Any]
Sizes: TypeAlias = Callable[[fx.Node], tuple[int | None, ...] | None]

CONVS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
TRANSPOSED = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}
NORMS = ("batch_norm", "_native_batch_norm_legit_no_training")
_SAME = ("clone", "contiguous", "alias", "detach", "detach_", "lift_fresh_copy", "lift_fresh")
_ARITHMETIC = ("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "rsub", "neg", "neg_")


def op_name(node: fx.Node) -> str:
    """``aten.conv2d.default`` -> ``conv2d``; other operators by their whole name."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, name = target._schema.name.partition("::")
        return name if namespace == "aten" else f"{namespace}.{name}"
    return str(getattr(target, "__name__", target))


def bind(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by name, with the defaults that torch.export leaves out."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return dict(node.kwargs)
    keywords = dict(node.kwargs)
    bound: dict[str, Any] = {}
    for index, argument in enumerate(node.target._schema.arguments):
        if index < len(node.args):
            bound[argument.name] = node.args[index]
        elif argument.name in keywords:
            bound[argument.name] = keywords[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound


def is_constant_number(value: object) -> bool:
    """A plain number, not a size or tensor of the graph."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def conv_kind(node: fx.Node) -> tuple[Op, int] | None:
    """``(op, spatial axes)`` of a conv or transposed conv; None for other calls."""
    name = op_name(node)
    if name in CONVS:
        return "conv", CONVS[name]
    if name in TRANSPOSED:
        return "conv_transpose", TRANSPOSED[name]
    if name in ("convolution", "_convolution"):
        call = bind(node)
        return ("conv_transpose" if call["transposed"] else "conv"), len(call["stride"])
    return None


def conv_padding(call: Call, kernel: Sequence[int], axes: int) -> tuple[tuple[int, int], ...]:
    """``(begin, end)`` per axis; ``same`` puts what is odd at the end, as torch does."""
    padding = call["padding"]
    if padding == "valid":
        return ((0, 0),) * axes
    if padding == "same":
        dilation = per_axis(call["dilation"], axes)
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((t // 2, t - t // 2) for t in totals)
    return tuple((p, p) for p in per_axis(padding, axes))


def conv_geometry(node: fx.Node, weight: torch.Tensor, sizes: Sizes) -> Geometry:
    """The geometry of a conv or transposed conv node."""
    call = bind(node)
    op, axes = conv_kind(node) or ("conv", weight.ndim - 2)
    groups = int(call["groups"])
    first, second = int(weight.shape[0]), int(weight.shape[1]) * groups
    transposed = op == "conv_transpose"
    source, result = sizes(call["input"]), sizes(node)
    return Geometry(
        in_channels=first if transposed else second,
        out_channels=second if transposed else first,
        kernel=tuple(int(k) for k in weight.shape[2:]),
        stride=per_axis(call["stride"], axes),
        dilation=per_axis(call["dilation"], axes),
        groups=groups,
        bias=call.get("bias") is not None,
        input_size=_known(source[-axes:] if source else None),
        output_size=_known(result[-axes:] if result else None),
        batch=(result[0] or 1) if result and len(result) == axes + 2 else 1,
        itemsize=weight.element_size(),
        transposed=transposed,
    )


def _known(size: tuple[int | None, ...] | None) -> tuple[int, ...] | None:
    if size is None or any(s is None for s in size):
        return None
    return tuple(s for s in size if s is not None)


def matrix_geometry(shape: Sequence[int], bias: bool, result: Any, itemsize: int) -> Geometry:
    """The geometry of a linear layer with a weight of shape ``(out, in)``."""
    rows = None if result is None else [1 if s is None else s for s in result[:-1]]
    return Geometry(
        in_channels=int(shape[1]),
        out_channels=int(shape[0]),
        kernel=(),
        stride=(),
        dilation=(),
        groups=1,
        bias=bias,
        input_size=None if rows is None else (),
        output_size=None if rows is None else (),
        batch=1 if rows is None else math.prod(rows),
        itemsize=itemsize,
    )


def describe(node: fx.Node, sizes: Sizes) -> tuple[Op, Mapping[str, Any]]:
    """The op and attrs, as ``Node`` promises them, of a call without constant tensors."""
    name, call = op_name(node), bind(node)
    shape = sizes(node)
    if name in ("add", "add_", "sub", "sub_", "rsub"):
        return _addition(name, call, shape, sizes)
    if name == "cat" and shape is not None:
        return "concat", {"axis": int(call["dim"]) % len(shape)}
    if "pool" in name:
        return "pool", _pool(name, call)
    if name in ("pad", "constant_pad_nd") and shape is not None:
        return "pad", _pad(call, len(shape))
    if name in ("permute", "transpose", "t") and shape is not None:
        return "transpose", {"perm": _perm(name, call, len(shape))}
    if name in ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "reshape_as", "view_as"):
        return _reshape(call, shape, sizes)
    if name in _SAME or (name in ("dropout", "dropout_") and not call["train"]):
        return "identity", {}
    return "other", {}


def _addition(name: str, call: Call, shape: Any, sizes: Sizes) -> tuple[Op, Mapping[str, Any]]:
    sides = [call["self"], call["other"]]
    values = [side.meta.get("val") for side in sides if isinstance(side, fx.Node)]
    dtypes = [v.dtype for v in values if isinstance(v, torch.Tensor)]
    if len(dtypes) != 2 or dtypes[0] != dtypes[1]:
        return "other", {}
    if not is_constant_number(call.get("alpha", 1)) or any(sizes(s) != shape for s in sides):
        return "other", {}
    alpha = float(call.get("alpha", 1))
    if name == "rsub":
        return "add", {"coefficients": (-alpha, 1.0)}
    return "add", {"coefficients": (1.0, -alpha if name.startswith("sub") else alpha)}


def _pool(name: str, call: Call) -> Mapping[str, Any]:
    if name not in ("avg_pool1d", "avg_pool2d", "avg_pool3d"):
        return {"kind": name.partition("_pool")[0]}
    if call.get("divisor_override") is not None:
        return {"kind": "average with another divisor"}
    axes = int(name[-2])
    kernel = per_axis(call["kernel_size"], axes)
    return {
        "kind": "average",
        "kernel": kernel,
        "stride": per_axis(call["stride"], axes) if call["stride"] else kernel,
        "padding": tuple((p, p) for p in per_axis(call["padding"], axes)),
        "dilation": (1,) * axes,
        "ceil_mode": bool(call["ceil_mode"]),
        "count_include_pad": bool(call["count_include_pad"]),
    }


def _pad(call: Call, ndim: int) -> Mapping[str, Any]:
    flat = list(call["pad"])
    if not all(isinstance(p, int) for p in flat):
        return {"mode": "of a size that is not fixed", "pads": (), "value": 0.0}
    pairs = [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]  # the last axis first
    value = call.get("value")
    return {
        "pads": tuple([(0, 0)] * (ndim - len(pairs)) + pairs[::-1]),
        "mode": call.get("mode", "constant"),
        "value": 0.0 if value is None else float(value),
    }


def _reshape(call: Call, after: Any, sizes: Sizes) -> tuple[Op, Mapping[str, Any]]:
    source = call.get("self", call.get("input"))
    before = sizes(source) if isinstance(source, fx.Node) else None
    if not before or not after or before[-1] is None or before[-1] != after[-1]:
        return "other", {}
    return "reshape", {"ranks": (len(before), len(after))}


def _perm(name: str, call: Call, ndim: int) -> tuple[int, ...]:
    if name == "permute":
        return tuple(int(d) % ndim for d in call["dims"])
    axes = list(range(ndim))
    if name == "t":
        return tuple(reversed(axes))
    first, second = int(call["dim0"]) % ndim, int(call["dim1"]) % ndim
    axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


def arithmetic(node: fx.Node) -> str | None:
    """``add``, ``sub``, ``mul``, ``div``, ``rsub`` or ``neg``, in place or not; else None."""
    name = op_name(node)
    return name.rstrip("_") if name in _ARITHMETIC else None
