"""What each node of an ONNX graph is to dacconv: its op, weight, geometry and constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dacconv.formats.onnx.affine import batch_norm_skip, loose_affine_axis
from dacconv.formats.onnx.document import Entry
from dacconv.formats.onnx.fixed_sizes import Known, fill_of
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
    """What a node is, beyond its name and edges; see :class:`dacconv.graph.types.Node`."""

    op: Op = "other"
    weight: str | None = None
    geometry: Geometry | None = None
    skip: str | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)


def role(entry: Entry, known: Known) -> Role:
    """Classify one node of the main graph."""
    if entry.writes and entry.writes[0] in known.constants.chained:
        return Role()
    if entry.op in QUANTISED_CONVS or entry.op in RUNTIME_CONVS:
        return _foreign_conv(entry, known)
    if entry.op in _ROLES:
        return _ROLES[entry.op](entry, known)
    if entry.op.endswith("Pool"):
        return Role("pool", attrs={"kind": entry.op})
    return Role()


def _conv(entry: Entry, known: Known) -> Role:
    weight = entry.proto.input[1] if len(entry.proto.input) > 1 else ""
    skip = conv_skip(entry, known.constants)
    dims = known.dims(weight)
    if dims is None or len(dims) < 3:
        fault = "the shape of its weight is not known" if dims is None else "not a kernel"
        return Role("conv", None, None, skip or fault)
    data = known.input_shape(entry)
    attributes = conv_attributes(entry, dims, spatial(data, len(dims) - 2))
    channels = data[1] if data is not None and len(data) > 1 else None
    if channels is not None and channels != dims[1] * attributes.groups:
        skip = skip or f"its weight {list(dims)} does not fit an input of {channels} channels"
    geometry = conv_geometry(
        attributes,
        (dims[1] * attributes.groups, dims[0]),
        bias=len(entry.proto.input) > 2 and bool(entry.proto.input[2]),
        shapes=(data, known.output_shape(entry)),
        data_type=known.data_type(weight),
    )
    return Role("conv", _identity(weight, known), geometry, skip or attributes.fault)


def _identity(weight: str, known: Known) -> str | None:
    return known.constants.identity(weight) if weight in known.constants else None


def _foreign_conv(entry: Entry, known: Known) -> Role:
    """A convolution in integers, or one of ONNX Runtime's own: listed, never touched."""
    at = QUANTISED_CONVS.get(entry.op, 1)
    weight = entry.proto.input[at] if len(entry.proto.input) > at else ""
    dims = known.dims(weight)
    geometry = None
    if dims is not None and len(dims) > 2 and "nhwc" not in entry.op.lower():
        attributes = conv_attributes(entry, dims, None)
        geometry = conv_geometry(
            attributes,
            (dims[1] * attributes.groups, dims[0]),
            bias=False,
            shapes=(known.input_shape(entry), known.output_shape(entry)),
            data_type=known.data_type(weight),
        )
    skip = (
        f"quantised ({entry.op}): split the floating-point model first, then quantise"
        if entry.op in QUANTISED_CONVS
        else f"{entry.op} is ONNX Runtime's own operator: convert the model as it was before it "
        "was optimised for that runtime"
    )
    return Role("conv", weight or None, geometry, skip)


def _conv_transpose(entry: Entry, known: Known) -> Role:
    names = entry.proto.input
    weight = names[1] if len(names) > 1 else ""
    dims = known.dims(weight)
    skip = conv_skip(entry, known.constants)
    given = attributes_of(entry)
    groups = max(int(given.get("group", 1)), 1)
    if dims is None or len(dims) < 3 or dims[0] % groups:
        return Role("conv_transpose", None, None, skip or "the shape of its weight is not known")
    if "output_shape" in given:
        skip = skip or "a transposed conv that states its output_shape instead of its padding"
    attributes = conv_attributes(entry, (dims[1] * groups, dims[0] // groups, *dims[2:]), None)
    geometry = conv_geometry(
        attributes,
        (dims[0], dims[1] * groups),
        bias=len(names) > 2 and bool(names[2]),
        shapes=(known.input_shape(entry), known.output_shape(entry)),
        data_type=known.data_type(weight),
    )
    skip = skip or attributes.fault
    return Role("conv_transpose", _identity(weight, known), geometry, skip)


def _linear(entry: Entry, known: Known) -> Role:
    linear = read_linear(entry, known.constants, known.inferred)
    if linear is None:
        return Role()
    return Role("linear", _identity(linear.weight, known), linear.geometry, linear.skip)


def _batch_norm(entry: Entry, known: Known) -> Role:
    return Role("affine", skip=batch_norm_skip(entry, known.constants), attrs={"axis": 1})


def _arithmetic(entry: Entry, known: Known) -> Role:
    axis = loose_affine_axis(entry, known.constants, known.inferred)
    if axis is not None:
        return Role("affine", attrs={"axis": axis})
    if entry.op not in ("Add", "Sub", "Sum"):
        return Role()
    names = entry.proto.input
    shapes = {known.inferred.shapes.get(name) for name in names}
    if len(names) < 2 or len(shapes) > 1 or any(name in known.constants for name in names):
        return Role()
    if entry.op == "Sub":
        return Role("add", attrs={"coefficients": (1.0, -1.0)})
    return Role("add")


def _concat(entry: Entry, known: Known) -> Role:
    if any(name in known.constants for name in entry.proto.input):
        return Role()
    axis = int(attributes_of(entry).get("axis", 0))
    shape = known.output_shape(entry)
    if axis < 0 and shape is None:
        return Role()
    return Role("concat", attrs={"axis": axis + len(shape or ()) if axis < 0 else axis})


def _average_pool(entry: Entry, known: Known) -> Role:
    given = attributes_of(entry)
    kernel = tuple(int(k) for k in given.get("kernel_shape", ()))
    axes = len(kernel)
    stride = tuple(int(s) for s in given.get("strides", (1,) * axes))
    dilation = tuple(int(d) for d in given.get("dilations", (1,) * axes))
    pads = tuple(int(p) for p in given.get("pads", (0,) * 2 * axes))
    mode = given.get("auto_pad", "NOTSET")
    padding = tuple(zip(pads[:axes], pads[axes:], strict=False))
    size = spatial(known.input_shape(entry), axes)
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
        "ceil_mode": bool(given.get("ceil_mode", 0)),
        "count_include_pad": bool(given.get("count_include_pad", 0)),
        "auto_pad": mode if mode in ("SAME_UPPER", "SAME_LOWER") else None,
    }
    return Role("pool", attrs=attrs)


def _pad(entry: Entry, known: Known) -> Role:
    """A Pad with constant amounts: attributes up to opset 10, inputs after."""
    given = attributes_of(entry)
    shape = known.input_shape(entry)
    try:
        amounts = given.get("pads") or known.constant(entry, 1)
        value = given.get("value", 0.0) if "pads" in given else known.constant(entry, 2)
        axes = known.constant(entry, 3)
    except CannotEvaluate:
        return Role()
    if amounts is None or (axes is not None and shape is None):
        return Role()
    flat = [int(each) for each in amounts]
    half = len(flat) // 2
    rank = len(shape) if shape is not None else half
    where = range(half) if axes is None else [int(axis) % rank for axis in axes]
    pads = [(0, 0)] * rank
    for axis, begin, end in zip(where, flat[:half], flat[half:], strict=False):
        pads[axis] = (begin, end)
    fill = 0.0 if value is None else float(np.asarray(value, np.float64).reshape(-1)[0])
    mode = given.get("mode", "constant")
    return Role("pad", attrs={"pads": tuple(pads), "mode": mode, "value": fill})


def _reshape(entry: Entry, known: Known) -> Role:
    """A Reshape or Flatten that keeps the last axis."""
    before, after = known.input_shape(entry), known.output_shape(entry)
    if not before or not after or before[-1] is None or before[-1] != after[-1]:
        return Role()
    return Role("reshape", attrs={"ranks": (len(before), len(after))})


def _scatter(entry: Entry, known: Known) -> Role:
    """An assignment to a slice."""
    attrs = fill_of(entry, known.static)
    return Role() if attrs is None else Role("fill", attrs=attrs)


def _transpose(entry: Entry, known: Known) -> Role:
    perm = attributes_of(entry).get("perm")
    shape = known.input_shape(entry)
    if perm is None and shape is None:
        return Role()
    order = reversed(range(len(shape or ()))) if perm is None else perm
    return Role("transpose", attrs={"perm": tuple(int(axis) for axis in order)})


def _cast(entry: Entry, known: Known) -> Role:
    """A Cast to the type that its input has already changes nothing."""
    same = known.inferred.types.get(entry.proto.input[0]) == attributes_of(entry).get("to")
    return Role("identity" if same else "other")


def _dropout(entry: Entry, known: Known) -> Role:
    try:
        training = known.constant(entry, 2)
    except CannotEvaluate:
        return Role()
    mask = len(entry.writes) > 1 and entry.writes[1] in known.constants.readers
    return Role("other" if mask or (training is not None and training.any()) else "identity")


_ROLES: Mapping[str, Callable[[Entry, Known], Role]] = {
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
    "Identity": lambda entry, known: Role("identity"),
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
