"""Numpy versions of the operators between a stored constant and its use.

Exporters wrap weights in Identity, Cast, Transpose and the like, and compute shapes with a
little arithmetic. ``OPERATORS`` holds what is needed for that, not a runtime: an operator or
attribute that is not here means that the value is not a constant to dacconv.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from onnx import AttributeProto, NodeProto, helper

from dacconv.formats.onnx.tensors import numpy_dtype, proto_array
from dacconv.graph.types import Array

Attributes = Mapping[str, Any]
Inputs = Sequence[Array | None]
Operator = Callable[[Attributes, Inputs], Array]
LARGEST = 1 << 25
"""The most elements that a computed constant may have, unless the caller says otherwise."""


class CannotEvaluate(ValueError):  # noqa: N818 - a result that callers expect, not an error
    """The operator, its attributes or its inputs are not supported by this small evaluator."""


def evaluate(node: NodeProto, inputs: Inputs, largest: int = LARGEST) -> Array:
    """The first output of a node whose inputs are constants (None: an input left out).

    A result with more than ``largest`` elements is only computed where it is no larger than the
    largest input.

    Raises:
        CannotEvaluate: the operator, its attributes or its inputs are not supported, or the
            result would be too large; the message says which.
    """
    operator = OPERATORS.get(node.op_type)
    if operator is None or node.domain not in ("", "ai.onnx"):
        raise CannotEvaluate(f"operator {node.op_type} is not evaluated")
    try:
        attributes = {a.name: attribute_value(a) for a in node.attribute}
        with np.errstate(all="ignore"):
            if node.op_type in _RESULT_SIZES:
                size = _RESULT_SIZES[node.op_type](attributes, inputs)
                if size > max(largest, *(x.size for x in inputs if x is not None), 0):
                    raise CannotEvaluate(f"a constant of {size:,} elements is too large")
            return np.asarray(operator(attributes, inputs))
    except (
        ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, MemoryError,
    ) as error:  # fmt: skip
        raise CannotEvaluate(f"{node.op_type}: {error}") from error


def attribute_value(attribute: AttributeProto) -> Any:
    """The value of an attribute; tensors as arrays, text as str."""
    if attribute.type == AttributeProto.TENSOR:
        return proto_array(attribute.t)
    value = helper.get_attribute_value(attribute)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _first(inputs: Inputs) -> Array:
    return _at(inputs, 0)


def _at(inputs: Inputs, index: int) -> Array:
    value = inputs[index]
    if value is None:
        raise CannotEvaluate("an input is left out")
    return value


def _axes(attributes: Attributes, inputs: Inputs, index: int = 1) -> tuple[int, ...] | None:
    """The ``axes`` of an operator, which moved from attribute to input with the opsets."""
    if "axes" in attributes:
        return tuple(int(axis) for axis in attributes["axes"])
    axes = inputs[index] if len(inputs) > index else None
    return None if axes is None else tuple(int(axis) for axis in axes.reshape(-1))


def _constant(attributes: Attributes, _: Inputs) -> Array:
    kinds = {
        "value": None, "value_float": np.float32, "value_floats": np.float32,
        "value_int": np.int64, "value_ints": np.int64,
    }  # fmt: skip
    for key, dtype in kinds.items():
        if key in attributes:
            return np.asarray(attributes[key], dtype)
    raise CannotEvaluate("it holds no tensor")


def _constant_of_shape(attributes: Attributes, inputs: Inputs) -> Array:
    value = attributes.get("value", np.zeros(1, np.float32))
    # a view: nothing is allocated before somebody computes with it
    return np.broadcast_to(value.reshape(-1)[0], _first(inputs).tolist())


def _cast(attributes: Attributes, inputs: Inputs) -> Array:
    dtype = numpy_dtype(attributes["to"])
    if dtype is None:
        raise CannotEvaluate("a cast to a type that numpy does not have")
    return _first(inputs).astype(dtype)


def _reshape(attributes: Attributes, inputs: Inputs) -> Array:
    x, shape = _first(inputs), [int(size) for size in _at(inputs, 1)]
    if not attributes.get("allowzero", 0):
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(shape)


def _flatten(attributes: Attributes, inputs: Inputs) -> Array:
    x, axis = _first(inputs), int(attributes.get("axis", 1))
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1)


def _unsqueeze(attributes: Attributes, inputs: Inputs) -> Array:
    axes = _axes(attributes, inputs)
    if axes is None:
        raise CannotEvaluate("it has no axes")
    return np.expand_dims(_first(inputs), axes)


def _squeeze(attributes: Attributes, inputs: Inputs) -> Array:
    return np.squeeze(_first(inputs), _axes(attributes, inputs))


def _slice(attributes: Attributes, inputs: Inputs) -> Array:
    x = _first(inputs)
    if "starts" in attributes:
        starts, ends, steps = attributes["starts"], attributes["ends"], None
        axes = attributes.get("axes")
    else:
        padded = [*inputs, None, None, None]
        starts, ends, axes, steps = _at(inputs, 1), _at(inputs, 2), padded[3], padded[4]
    every: Sequence[Any] = range(len(starts)) if axes is None else cast(Sequence[Any], axes)
    strides: Sequence[Any] = [1] * len(starts) if steps is None else cast(Sequence[Any], steps)
    index: list[slice] = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, every, strides, strict=True):
        # numpy reads a negative end as counted from the back; ONNX means "before the front"
        size, stop = x.shape[int(axis)], int(end)
        index[int(axis)] = slice(
            int(start), None if int(step) < 0 and stop < -size else stop, int(step)
        )
    return x[tuple(index)]


def _gather(attributes: Attributes, inputs: Inputs) -> Array:
    return np.take(_first(inputs), _at(inputs, 1), axis=int(attributes.get("axis", 0)))


def _concat(attributes: Attributes, inputs: Inputs) -> Array:
    parts = [_at(inputs, index) for index in range(len(inputs))]
    return np.concatenate(parts, axis=int(attributes["axis"]))


def _expand(_: Attributes, inputs: Inputs) -> Array:
    x = _first(inputs)
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(_at(inputs, 1).tolist())))


def _range(_: Attributes, inputs: Inputs) -> Array:
    start, limit, delta = (_at(inputs, i).reshape(()) for i in range(3))
    return cast(Array, np.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype))


def _divide(_: Attributes, inputs: Inputs) -> Array:
    a, b = _at(inputs, 0), _at(inputs, 1)
    if not np.issubdtype(a.dtype, np.integer):
        return np.asarray(a / b)
    if not b.all():
        raise CannotEvaluate("division by zero")
    quotient = np.abs(a) // np.abs(b)  # ONNX truncates towards zero, numpy floors
    return np.asarray(np.sign(a) * np.sign(b) * quotient, a.dtype)


def _shape(attributes: Attributes, inputs: Inputs) -> Array:
    x = _first(inputs)
    return np.asarray(x.shape[attributes.get("start", 0) : attributes.get("end")], np.int64)


def _dequantize(attributes: Attributes, inputs: Inputs) -> Array:
    x, scale = _at(inputs, 0), _at(inputs, 1)
    zero = inputs[2] if len(inputs) > 2 else None
    if attributes.get("block_size", 0):
        raise CannotEvaluate("blocked quantisation")
    if scale.size > 1:
        shape = [1] * x.ndim
        shape[int(attributes.get("axis", 1))] = scale.size
        scale = scale.reshape(shape)
        zero = None if zero is None else zero.reshape(shape)
    shifted = x.astype(np.int32) - (0 if zero is None else zero.astype(np.int32))
    return (shifted * scale).astype(scale.dtype)


def _unary(function: Callable[[Array], Array]) -> Operator:
    return lambda _, inputs: np.asarray(function(_first(inputs)))


def _binary(function: Callable[[Array, Array], Array]) -> Operator:
    return lambda _, inputs: np.asarray(function(_at(inputs, 0), _at(inputs, 1)))


def _typed(function: Callable[[Array], Array]) -> Operator:
    """A unary function whose result keeps its input's type."""
    return lambda _, inputs: np.asarray(function(_first(inputs)), _first(inputs).dtype)


def _reduction(function: Callable[..., Array]) -> Operator:
    def reduce(attributes: Attributes, inputs: Inputs) -> Array:
        x, axes = _first(inputs), _axes(attributes, inputs)
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return x
        keepdims = bool(attributes.get("keepdims", 1))
        return np.asarray(function(x, axis=axes or None, keepdims=keepdims), x.dtype)

    return reduce


def _l2(x: Array, *, axis: tuple[int, ...] | None, keepdims: bool) -> Array:
    wide = x.astype(np.float64)
    return np.asarray(np.sqrt(np.sum(wide * wide, axis=axis, keepdims=keepdims)))


OPERATORS: dict[str, Operator] = {
    "Abs": _unary(np.abs),
    "Add": _binary(np.add),
    "Cast": _cast,
    "Ceil": _typed(np.ceil),
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DequantizeLinear": _dequantize,
    "Div": _divide,
    "Equal": _binary(np.equal),
    "Exp": _typed(np.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _typed(np.floor),
    "Gather": _gather,
    "Identity": lambda _, inputs: _first(inputs),
    "Log": _typed(np.log),
    "Max": _binary(np.maximum),
    "Min": _binary(np.minimum),
    "Mul": _binary(np.multiply),
    "Neg": _unary(np.negative),
    "Pow": lambda _, i: np.asarray(np.power(_at(i, 0), _at(i, 1)), _at(i, 0).dtype),
    "Range": _range,
    "Reciprocal": _typed(lambda x: np.asarray(1 / x)),
    "ReduceL2": _reduction(_l2),
    "ReduceMean": _reduction(np.mean),
    "ReduceProd": _reduction(np.prod),
    "ReduceSum": _reduction(np.sum),
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Sqrt": _typed(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(np.subtract),
    "Transpose": lambda a, i: np.transpose(_first(i), a.get("perm")),
    "Unsqueeze": _unsqueeze,
    "Where": lambda _, i: np.where(_at(i, 0), _at(i, 1), _at(i, 2)),
}


def _broadcast_size(_: Attributes, inputs: Inputs) -> int:
    return math.prod(np.broadcast_shapes(*(x.shape for x in inputs if x is not None)))


def _expanded_size(_: Attributes, inputs: Inputs) -> int:
    shape = tuple(int(size) for size in _at(inputs, 1).reshape(-1))
    return math.prod(np.broadcast_shapes(_first(inputs).shape, shape))


def _range_size(_: Attributes, inputs: Inputs) -> int:
    start, limit, delta = (_at(inputs, i).reshape(()).item() for i in range(3))
    return max(0, math.ceil((limit - start) / delta)) if delta else 0


def _gathered_size(attributes: Attributes, inputs: Inputs) -> int:
    x = _first(inputs)
    slices = x.size // max(x.shape[int(attributes.get("axis", 0))], 1)
    return int(slices * _at(inputs, 1).size)


def _dequantized_size(attributes: Attributes, inputs: Inputs) -> int:
    x, scales = _first(inputs), _at(inputs, 1).size
    return x.size * (scales if scales > 1 and x.shape[int(attributes.get("axis", 1))] == 1 else 1)


_RESULT_SIZES: dict[str, Callable[[Attributes, Inputs], int]] = {
    **dict.fromkeys(
        ("Add", "Div", "Equal", "Max", "Min", "Mul", "Pow", "Sub", "Where"), _broadcast_size
    ),
    "Concat": lambda _, inputs: sum(x.size for x in inputs if x is not None),
    "ConstantOfShape": lambda _, inputs: math.prod(int(n) for n in _first(inputs).reshape(-1)),
    "DequantizeLinear": _dequantized_size,
    "Expand": _expanded_size,
    "Gather": _gathered_size,
    "Range": _range_size,
}
"""The number of elements of a result, for the operators whose result can be larger than any input.
"""
