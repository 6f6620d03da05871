"""Run an ONNX graph in torch, for gradients: the common operators of convolutional networks.

Imported only to distil images and to tune factors. If the graph has an operator that is not
here, the caller does without gradients.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from dacconv.errors import UnsupportedError
from dacconv.formats.base import Feeds, Forward, Stop
from dacconv.formats.onnx.constants import Constants
from dacconv.formats.onnx.document import Document, Entry
from dacconv.formats.torch.distil import Stored
from dacconv.formats.torch.gradients import place_for
from dacconv.graph.types import Array

Attributes = dict[str, Any]
Operator = Callable[[list[Any], Attributes], Tensor]
"""Inputs (tensors; None where left out) and attributes to the first output."""


def batch_norms(document: Document, constants: Constants) -> dict[str, tuple[Array, Array]]:
    """The running mean and variance of every BatchNormalization, by the name of its input."""
    statistics = {}
    for entry in document.entries:
        if entry.op == "BatchNormalization":
            mean, variance = entry.proto.input[3:5]
            if mean in constants and variance in constants:
                values = constants.value(mean), constants.value(variance)
                statistics[entry.proto.input[0]] = values
    return statistics


def batch_norm_inputs(
    document: Document, constants: Constants, source: str, device: str | None
) -> tuple[Callable[[Tensor], list[Tensor]], list[Stored]] | None:
    """A function from images to the inputs of the BatchNorms, and their running statistics.

    None if there is no BatchNorm with constants, or an operator is not supported.
    """
    torch_device = place_for(device)
    norms = batch_norms(document, constants)
    compute = computation(document, constants, [source], list(norms), torch_device)
    if not norms or isinstance(compute, str):
        return None

    def norm_inputs(images: Tensor) -> list[Tensor]:
        values = compute({source: images}, None)
        return [values[name] for name in norms]

    stored = [Stored(_tensor(m, torch_device), _tensor(v, torch_device)) for m, v in norms.values()]
    return norm_inputs, stored


@contextmanager
def differentiable(
    document: Document,
    constants: Constants,
    sources: Sequence[str],
    nodes: Sequence[str],
    device: str | None,
) -> Iterator[Forward]:
    """See :class:`dacconv.formats.base.Differentiable`.

    Raises:
        UnsupportedError: the graph has an operator that is not supported.
    """
    torch_device = place_for(device)
    outputs = [name for name in document.outputs if name not in constants]
    compute = computation(document, constants, sources, outputs, torch_device, frozenset(nodes))
    if isinstance(compute, str):
        raise UnsupportedError(compute)

    def run(feeds: Feeds, stop: Stop) -> dict[str, Array]:
        values = compute({name: _tensor(feeds[name], torch_device) for name in sources}, stop)
        return {name: values[name].detach().cpu().numpy() for name in outputs}

    yield run


Compute = Callable[[Mapping[str, Tensor], Stop | None], dict[str, Tensor]]
"""From the values of the inputs, and a substitute for some convs, to every value of the graph."""


def computation(
    document: Document,
    constants: Constants,
    sources: Sequence[str],
    outputs: Sequence[str],
    torch_device: torch.device,
    stops: Set[str] = frozenset(),
) -> Compute | str:
    """A function that computes the values ``outputs``, or the reason why there is none."""
    entries = _leading_to(document, constants, outputs)
    unsupported = sorted({entry.op for entry in entries if entry.op not in OPERATORS})
    if unsupported:
        return f"gradients through {', '.join(unsupported)} are not supported"
    read = {name for entry in entries for name in entry.reads}
    fixed = {
        name: _tensor(constants.value(name), torch_device) for name in read if name in constants
    }
    computed = {*sources, *(name for entry in entries for name in entry.writes[:1])}
    if missing := sorted((read | set(outputs)) - computed - fixed.keys()):
        return f"gradients through the value '{missing[0]}' are not supported"
    plans = [(entry, _attributes(entry), OPERATORS[entry.op]) for entry in entries]

    def compute(inputs: Mapping[str, Tensor], stop: Stop | None) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {**fixed, **inputs}
        for entry, attributes, apply in plans:
            arguments = [values[name] if name else None for name in entry.proto.input]
            if stop is not None and entry.name in stops:
                values[entry.writes[0]] = stop(entry.name, arguments[0])
            else:
                values[entry.writes[0]] = apply(arguments, attributes)
        return values

    return compute


def _leading_to(
    document: Document, constants: Constants, outputs: Sequence[str] | Any
) -> list[Entry]:
    """The nodes that compute the values ``outputs``, in order."""
    needed, entries = set(outputs), []
    for entry in reversed(document.entries):
        if needed.intersection(entry.writes) and entry.writes[0] not in constants:
            entries.append(entry)
            needed.update(entry.reads)
    return entries[::-1]


def _tensor(array: Array, device: torch.device) -> Tensor:
    values = np.array(array, copy=True, order="C")
    if values.dtype.kind == "f" or values.dtype.name == "bfloat16":
        values = values.astype(np.float32)
    return torch.from_numpy(values).to(device)


def _attributes(entry: Entry) -> Attributes:
    return {a.name: onnx.helper.get_attribute_value(a) for a in entry.proto.attribute}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def _padded(x: Tensor, kernel: Sequence[int], a: Attributes, value: float) -> Tensor:
    """The input with the operator's own padding around it."""
    axes = len(kernel)
    strides, dilations = a.get("strides", [1] * axes), a.get("dilations", [1] * axes)
    auto = _text(a.get("auto_pad", b"NOTSET"))
    pads = list(a.get("pads", [0] * (2 * axes)))
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        for i in range(axes):
            size = x.shape[2 + i]
            span = dilations[i] * (kernel[i] - 1) + 1
            whole = max((-(-size // strides[i]) - 1) * strides[i] + span - size, 0)
            less, more = whole // 2, whole - whole // 2
            pads[i], pads[axes + i] = (less, more) if auto == "SAME_UPPER" else (more, less)
    elif auto == "VALID":
        pads = [0] * (2 * axes)
    if not any(pads):
        return x
    flat = [pads[side * axes + i] for i in reversed(range(axes)) for side in (0, 1)]
    return F.pad(x, flat, value=value)


_CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAXIMA = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEANS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _conv(xs: list[Any], a: Attributes) -> Tensor:
    x, weight = xs[:2]
    bias = xs[2] if len(xs) > 2 else None
    axes = weight.ndim - 2
    x = _padded(x, weight.shape[2:], a, 0.0)
    ones = [1] * axes
    return _CONVS[axes](
        x, weight, bias, a.get("strides", ones), 0, a.get("dilations", ones), a.get("group", 1)
    )


def _norm(xs: list[Any], a: Attributes) -> Tensor:
    x, scale, shift, mean, variance = xs[:5]
    return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, a.get("epsilon", 1e-5))


def _max_pool(xs: list[Any], a: Attributes) -> Tensor:
    kernel = a["kernel_shape"]
    axes = len(kernel)
    x = _padded(xs[0], kernel, a, float("-inf"))
    strides, dilations = a.get("strides", [1] * axes), a.get("dilations", [1] * axes)
    ceil = bool(a.get("ceil_mode", 0))
    return _MAXIMA[axes](x, kernel, strides, 0, dilations, ceil)


def _average_pool(xs: list[Any], a: Attributes) -> Tensor:
    kernel = a["kernel_shape"]
    axes = len(kernel)
    strides, ceil = a.get("strides", [1] * axes), bool(a.get("ceil_mode", 0))
    x = _padded(xs[0], kernel, a, 0.0)
    means = _MEANS[axes](x, kernel, strides, 0, ceil)
    if x is xs[0] or a.get("count_include_pad", 0):
        return means
    ones = _padded(torch.ones_like(xs[0][:1, :1]), kernel, a, 0.0)
    return means / _MEANS[axes](ones, kernel, strides, 0, ceil)


def _gemm(xs: list[Any], a: Attributes) -> Tensor:
    left = xs[0].T if a.get("transA") else xs[0]
    right = xs[1].T if a.get("transB") else xs[1]
    result: Tensor = a.get("alpha", 1.0) * (left @ right)
    if len(xs) > 2 and xs[2] is not None:
        result = result + a.get("beta", 1.0) * xs[2]
    return result


def _numbers(xs: list[Any], a: Attributes, index: int, name: str) -> list[int] | None:
    """The integers that newer operators take as an input, and older ones as an attribute."""
    if len(xs) > index and xs[index] is not None:
        return [int(v) for v in xs[index].flatten().tolist()]
    numbers = a.get(name)
    return None if numbers is None else [int(v) for v in numbers]


def _slice(xs: list[Any], a: Attributes) -> Tensor:
    x: Tensor = xs[0]
    starts, ends = _numbers(xs, a, 1, "starts") or [], _numbers(xs, a, 2, "ends") or []
    axes = _numbers(xs, a, 3, "axes") or list(range(len(starts)))
    steps = _numbers(xs, a, 4, "steps") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        picked = range(x.shape[axis])[slice(start, None if step < 0 and end < -x.shape[axis]
                                            else end, step)]  # fmt: skip
        x = x.index_select(axis, torch.tensor(list(picked), device=x.device))
    return x


def _pad(xs: list[Any], a: Attributes) -> Tensor:
    x = xs[0]
    pads = _numbers(xs, a, 1, "pads") or []
    axes = _numbers(xs, a, 3, "axes") or list(range(x.ndim))
    value = float(xs[2]) if len(xs) > 2 and xs[2] is not None else float(a.get("value", 0.0))
    sides = [(0, 0)] * x.ndim
    for i, axis in enumerate(axes):
        sides[axis] = (pads[i], pads[len(axes) + i])
    mode = {"": "constant", "edge": "replicate", "wrap": "circular"}.get(
        _text(a.get("mode", b"")), _text(a.get("mode", b""))
    )
    padded = sides if mode == "constant" else sides[2:]
    flat = [side for pair in reversed(padded) for side in pair]
    return F.pad(x, flat, mode, value) if mode == "constant" else F.pad(x, flat, mode)


def _reshape(xs: list[Any], a: Attributes) -> Tensor:
    shape = _numbers(xs, a, 1, "shape") or []
    sizes = [xs[0].shape[i] if n == 0 and not a.get("allowzero") else n
             for i, n in enumerate(shape)]  # fmt: skip
    if sizes and sizes[0] == 1 and xs[0].shape[0] != 1 and -1 not in sizes:
        sizes[0] = xs[0].shape[0]  # exported with a batch of 1
    result: Tensor = xs[0].reshape(sizes)
    return result


def _flatten(xs: list[Any], a: Attributes) -> Tensor:
    axis = a.get("axis", 1) % (xs[0].ndim + 1)
    lead = int(np.prod(xs[0].shape[:axis], dtype=int))
    result: Tensor = xs[0].reshape(lead, -1)
    return result


def _clip(xs: list[Any], a: Attributes) -> Tensor:
    low = xs[1] if len(xs) > 1 else a.get("min")
    high = xs[2] if len(xs) > 2 else a.get("max")
    return torch.clamp(xs[0], low, high)


def _mean(xs: list[Any], a: Attributes) -> Tensor:
    axes = _numbers(xs, a, 1, "axes") or list(range(xs[0].ndim))
    result: Tensor = xs[0].mean(axes, keepdim=bool(a.get("keepdims", 1)))
    return result


def _squeeze(xs: list[Any], a: Attributes) -> Tensor:
    axes = _numbers(xs, a, 1, "axes") or [i for i, n in enumerate(xs[0].shape) if n == 1]
    result: Tensor = xs[0].squeeze(tuple(axes))
    return result


def _unsqueeze(xs: list[Any], a: Attributes) -> Tensor:
    x: Tensor = xs[0]
    for axis in sorted(_numbers(xs, a, 1, "axes") or []):
        x = x.unsqueeze(axis)
    return x


def _prelu(xs: list[Any], _: Attributes) -> Tensor:
    return torch.where(xs[0] >= 0, xs[0], xs[0] * xs[1])


OPERATORS: dict[str, Operator] = {
    "Add": lambda xs, a: xs[0] + xs[1],
    "AveragePool": _average_pool,
    "BatchNormalization": _norm,
    "Clip": _clip,
    "Concat": lambda xs, a: torch.cat(xs, a["axis"]),
    "Conv": _conv,
    "Div": lambda xs, a: xs[0] / xs[1],
    "Dropout": lambda xs, a: xs[0],
    "Elu": lambda xs, a: F.elu(xs[0], a.get("alpha", 1.0)),
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda xs, a: xs[0].mean(tuple(range(2, xs[0].ndim)), keepdim=True),
    "GlobalMaxPool": lambda xs, a: xs[0].amax(tuple(range(2, xs[0].ndim)), keepdim=True),
    "HardSigmoid": lambda xs, a: torch.clamp(
        a.get("alpha", 0.2) * xs[0] + a.get("beta", 0.5), 0, 1
    ),
    "HardSwish": lambda xs, a: F.hardswish(xs[0]),
    "Identity": lambda xs, a: xs[0],
    "LeakyRelu": lambda xs, a: F.leaky_relu(xs[0], a.get("alpha", 0.01)),
    "MatMul": lambda xs, a: xs[0] @ xs[1],
    "MaxPool": _max_pool,
    "Mul": lambda xs, a: xs[0] * xs[1],
    "PRelu": _prelu,
    "Pad": _pad,
    "ReduceMean": _mean,
    "Relu": lambda xs, a: F.relu(xs[0]),
    "Reshape": _reshape,
    "Sigmoid": lambda xs, a: torch.sigmoid(xs[0]),
    "Slice": _slice,
    "Softplus": lambda xs, a: F.softplus(xs[0]),
    "Squeeze": _squeeze,
    "Sub": lambda xs, a: xs[0] - xs[1],
    "Sum": lambda xs, a: functools.reduce(operator.add, xs),
    "Tanh": lambda xs, a: torch.tanh(xs[0]),
    "Transpose": lambda xs, a: xs[0].permute(a.get("perm", list(range(xs[0].ndim))[::-1])),
    "Unsqueeze": _unsqueeze,
}
