"""The role of each node of an ONNX graph: its op, weight, geometry and constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dacconv.formats.onnx.affine import batch_norm_skip, loose_affine_axis
from dacconv.formats.onnx.document import Entry
from dacconv.formats.onnx.fixed_sizes import GraphFacts, fill_of
from dacconv.formats.onnx.geometry import (
    attributes_of,
    conv_attributes,
    conv_geometry,
    same_padding,
    spatial,
)
from dacconv.formats.onnx.layers import QUANTISED_CONVS, RUNTIME_CONVS, conv_skip, read_linear
from dacconv.formats.onnx.operators import CannotEvaluate
from dacconv.graph.types import Geometry, Op


@dataclass(frozen=True, slots=True)
class Role:
    """A node without its name and edges; see :class:`dacconv.graph.types.Node`."""

    op: Op = "other"
    weight: str | None = None
    geometry: Geometry | None = None
    skip: str | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)


def role(entry: Entry, facts: GraphFacts) -> Role:
    """Classify one node of the main graph."""
    if entry.writes and entry.writes[0] in facts.constants.computed:
        return Role()
    if entry.op in QUANTISED_CONVS or entry.op in RUNTIME_CONVS:
        return _foreign_conv(entry, facts)
    if entry.op in _ROLES:
        return _ROLES[entry.op](entry, facts)
    if entry.op.endswith("Pool"):
        return Role("pool", attrs={"kind": entry.op})
    return Role()


def _conv(entry: Entry, facts: GraphFacts) -> Role:
    weight = entry.proto.input[1] if len(entry.proto.input) > 1 else ""
    skip = conv_skip(entry, facts.constants)
    dims = facts.dims(weight)
    if dims is None or len(dims) < 3:
        problem = "the shape of its weight is not known" if dims is None else "not a kernel"
        return Role("conv", None, None, skip or problem)
    data = facts.input_shape(entry)
    attributes = conv_attributes(entry, dims, spatial(data, len(dims) - 2))
    channels = data[1] if data is not None and len(data) > 1 else None
    if channels is not None and channels != dims[1] * attributes.groups:
        skip = skip or f"its weight {list(dims)} does not fit an input of {channels} channels"
    geometry = conv_geometry(
        attributes,
        (dims[1] * attributes.groups, dims[0]),
        bias=len(entry.proto.input) > 2 and bool(entry.proto.input[2]),
        shapes=(data, facts.output_shape(entry)),
        data_type=facts.data_type(weight),
    )
    return Role("conv", _identity(weight, facts), geometry, skip or attributes.problem)


def _identity(weight: str, facts: GraphFacts) -> str | None:
    return facts.constants.identity(weight) if weight in facts.constants else None


def _foreign_conv(entry: Entry, facts: GraphFacts) -> Role:
    """A convolution in integers, or one of ONNX Runtime's own; it is only listed."""
    at = QUANTISED_CONVS.get(entry.op, 1)
    weight = entry.proto.input[at] if len(entry.proto.input) > at else ""
    dims = facts.dims(weight)
    geometry = None
    if dims is not None and len(dims) > 2 and "nhwc" not in entry.op.lower():
        attributes = conv_attributes(entry, dims, None)
        geometry = conv_geometry(
            attributes,
            (dims[1] * attributes.groups, dims[0]),
            bias=False,
            shapes=(facts.input_shape(entry), facts.output_shape(entry)),
            data_type=facts.data_type(weight),
        )
    skip = (
        f"quantised ({entry.op}): split the floating-point model first, then quantise"
        if entry.op in QUANTISED_CONVS
        else f"{entry.op} is ONNX Runtime's own operator: convert the model as it was before it "
        "was optimised for that runtime"
    )
    return Role("conv", weight or None, geometry, skip)


def _conv_transpose(entry: Entry, facts: GraphFacts) -> Role:
    names = entry.proto.input
    weight = names[1] if len(names) > 1 else ""
    dims = facts.dims(weight)
    skip = conv_skip(entry, facts.constants)
    raw = attributes_of(entry)
    groups = max(int(raw.get("group", 1)), 1)
    if dims is None or len(dims) < 3 or dims[0] % groups:
        return Role("conv_transpose", None, None, skip or "the shape of its weight is not known")
    if "output_shape" in raw:
        skip = skip or "a transposed conv that states its output_shape instead of its padding"
    attributes = conv_attributes(entry, (dims[1] * groups, dims[0] // groups, *dims[2:]), None)
    geometry = conv_geometry(
        attributes,
        (dims[0], dims[1] * groups),
        bias=len(names) > 2 and bool(names[2]),
        shapes=(facts.input_shape(entry), facts.output_shape(entry)),
        data_type=facts.data_type(weight),
        transposed=True,
    )
    skip = skip or attributes.problem
    return Role("conv_transpose", _identity(weight, facts), geometry, skip)


def _linear(entry: Entry, facts: GraphFacts) -> Role:
    linear = read_linear(entry, facts.constants, facts.inferred)
    if linear is None:
        return Role()
    return Role("linear", _identity(linear.weight, facts), linear.geometry, linear.skip)


def _batch_norm(entry: Entry, facts: GraphFacts) -> Role:
    skip = batch_norm_skip(entry, facts.constants)
    shape, size = facts.input_shape(entry), facts.dims(entry.proto.input[1])
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    if skip is None and channels is not None and size != (channels,):
        skip = f"BatchNormalization of {channels} channels with parameters of shape {size}"
    return Role("affine", skip=skip, attrs={"axis": 1})


def _arithmetic(entry: Entry, facts: GraphFacts) -> Role:
    axis = loose_affine_axis(entry, facts.constants, facts.inferred)
    if axis is not None:
        return Role("affine", attrs={"axis": axis})
    if entry.op not in ("Add", "Sub", "Sum"):
        return Role()
    names = entry.proto.input
    shapes = {facts.inferred.shapes.get(name) for name in names}
    if len(names) < 2 or len(shapes) > 1 or any(name in facts.constants for name in names):
        return Role()
    if entry.op == "Sub":
        return Role("add", attrs={"coefficients": (1.0, -1.0)})
    return Role("add")


def _concat(entry: Entry, facts: GraphFacts) -> Role:
    if any(name in facts.constants for name in entry.proto.input):
        return Role()
    axis = int(attributes_of(entry).get("axis", 0))
    shape = facts.output_shape(entry)
    if axis < 0 and shape is None:
        return Role()
    return Role("concat", attrs={"axis": axis + len(shape or ()) if axis < 0 else axis})


def _average_pool(entry: Entry, facts: GraphFacts) -> Role:
    attributes = attributes_of(entry)
    kernel = tuple(int(k) for k in attributes.get("kernel_shape", ()))
    axes = len(kernel)
    stride = tuple(int(s) for s in attributes.get("strides", (1,) * axes))
    dilation = tuple(int(d) for d in attributes.get("dilations", (1,) * axes))
    pads = tuple(int(p) for p in attributes.get("pads", (0,) * 2 * axes))
    mode = attributes.get("auto_pad", "NOTSET")
    padding = tuple(zip(pads[:axes], pads[axes:], strict=False))
    size = spatial(facts.input_shape(entry), axes)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        padding = ((0, 0),) * axes
        if size is not None:
            padding = same_padding(size, kernel, stride, dilation, mode)
    attrs = {
        "kind": "average",
        "kernel": kernel,
        "stride": stride,
        "padding": ((0, 0),) * axes if mode == "VALID" else padding,
        "dilation": dilation,
        "ceil_mode": bool(attributes.get("ceil_mode", 0)),
        "count_include_pad": bool(attributes.get("count_include_pad", 0)),
        "auto_pad": mode if mode in ("SAME_UPPER", "SAME_LOWER") else None,
    }
    return Role("pool", attrs=attrs)


def _pad(entry: Entry, facts: GraphFacts) -> Role:
    """A Pad with constant amounts: attributes up to opset 10, inputs after."""
    attributes = attributes_of(entry)
    shape = facts.input_shape(entry)
    try:
        amounts = attributes.get("pads") or facts.constant(entry, 1)
        value = attributes.get("value", 0.0) if "pads" in attributes else facts.constant(entry, 2)
        axes = facts.constant(entry, 3)
    except CannotEvaluate:
        return Role()
    if amounts is None or (axes is not None and shape is None):
        return Role()
    flat = [int(amount) for amount in np.asarray(amounts).reshape(-1)]
    half = len(flat) // 2
    rank = len(shape) if shape is not None else half
    where = range(half) if axes is None else [int(axis) % rank for axis in axes]
    if len(flat) != 2 * len(where) or (axes is None and half != rank):
        return Role()
    pads = [(0, 0)] * rank
    for axis, begin, end in zip(where, flat[:half], flat[half:], strict=False):
        pads[axis] = (begin, end)
    fill = 0.0 if value is None else float(np.asarray(value, np.float64).reshape(-1)[0])
    mode = attributes.get("mode", "constant")
    return Role("pad", attrs={"pads": tuple(pads), "mode": mode, "value": fill})


def _reshape(entry: Entry, facts: GraphFacts) -> Role:
    """A Reshape or Flatten that keeps the last axis."""
    before, after = facts.input_shape(entry), facts.output_shape(entry)
    if not before or not after or before[-1] is None or before[-1] != after[-1]:
        return Role()
    return Role("reshape", attrs={"ranks": (len(before), len(after))})


def _scatter(entry: Entry, facts: GraphFacts) -> Role:
    """An assignment to a slice."""
    attrs = fill_of(entry, facts.sizes)
    return Role() if attrs is None else Role("fill", attrs=attrs)


def _transpose(entry: Entry, facts: GraphFacts) -> Role:
    perm = attributes_of(entry).get("perm")
    shape = facts.input_shape(entry)
    if perm is None and shape is None:
        return Role()
    order = reversed(range(len(shape or ()))) if perm is None else perm
    return Role("transpose", attrs={"perm": tuple(int(axis) for axis in order)})


def _cast(entry: Entry, facts: GraphFacts) -> Role:
    """A Cast to the type of its input is an identity."""
    same = facts.inferred.types.get(entry.proto.input[0]) == attributes_of(entry).get("to")
    return Role("identity" if same else "other")


def _dropout(entry: Entry, facts: GraphFacts) -> Role:
    try:
        training = facts.constant(entry, 2)
    except CannotEvaluate:
        return Role()
    mask = len(entry.writes) > 1 and entry.writes[1] in facts.constants.readers
    return Role("other" if mask or (training is not None and training.any()) else "identity")


_ROLES: Mapping[str, Callable[[Entry, GraphFacts], Role]] = {
    "Add": _arithmetic,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _arithmetic,
    "Dropout": _dropout,
    "Flatten": _reshape,
    "Gemm": _linear,
    "Identity": lambda entry, facts: Role("identity"),
    "MatMul": _linear,
    "Mul": _arithmetic,
    "Neg": _arithmetic,
    "Pad": _pad,
    "Reshape": _reshape,
    "ScatterND": _scatter,
    "Sub": _arithmetic,
    "Sum": _arithmetic,
    "Transpose": _transpose,
}
