"""The attributes and sizes of convolutions and linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import AttributeProto

from dacconv.errors import FormatError
from dacconv.formats.onnx.document import Entry
from dacconv.formats.onnx.operators import attribute_value
from dacconv.formats.onnx.tensors import numpy_dtype
from dacconv.graph.types import AutoPad, Geometry, Shape

Pads = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ConvAttributes:
    """The attributes of a conv-like node, defaults filled in.

    ``problem`` is the reason why they contradict each other or the weight; None if they do not.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Pads
    groups: int
    auto_pad: AutoPad | None
    problem: str | None = None


_KINDS: Mapping[int, tuple[str, ...]] = {
    AttributeProto.INTS: (
        "pads", "strides", "dilations", "kernel_shape", "perm", "output_padding", "output_shape",
    ),
    AttributeProto.INT: (
        "group", "axis", "transA", "transB", "ceil_mode", "count_include_pad", "training_mode",
        "spatial", "to",
    ),
    AttributeProto.FLOAT: ("alpha", "beta", "epsilon"),
    AttributeProto.STRING: ("auto_pad", "mode"),
}  # fmt: skip
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}


def attributes_of(entry: Entry) -> dict[str, Any]:
    """The node's attributes, without its subgraphs.

    Raises:
        FormatError: an attribute that dacconv reads is of the wrong type.
    """
    for attribute in entry.proto.attribute:
        if attribute.type != _KIND_OF.get(attribute.name, attribute.type):
            raise FormatError(
                f"attribute {attribute.name!r} of node {entry.name!r} ({entry.op}) is of the "
                "wrong type",
                hint="the file is damaged, or its exporter is faulty",
            )
    return {
        a.name: attribute_value(a)
        for a in entry.proto.attribute
        if not a.HasField("g") and not a.graphs
    }


def conv_attributes(
    entry: Entry, weight: tuple[int, ...], input_size: tuple[int, ...] | None
) -> ConvAttributes:
    """The attributes of a conv whose weight has the shape ``(out, in / groups, *kernel)``.

    With ``auto_pad`` the padding is computed if ``input_size`` is known, else it is 0.
    """
    attributes = attributes_of(entry)
    kernel = weight[2:]
    axes = len(kernel)
    stride = tuple(int(s) for s in attributes.get("strides", (1,) * axes))
    dilation = tuple(int(d) for d in attributes.get("dilations", (1,) * axes))
    pads = tuple(int(p) for p in attributes.get("pads", (0,) * 2 * axes))
    groups = int(attributes.get("group", 1))
    mode = attributes.get("auto_pad", "NOTSET")
    problem = _problem(attributes, weight, stride, dilation, pads, groups)
    if problem:
        ones = (1,) * axes
        return ConvAttributes(kernel, ones, ones, ((0, 0),) * axes, max(groups, 1), None, problem)
    padding: Pads = tuple(zip(pads[:axes], pads[axes:], strict=True))
    auto: AutoPad | None = None
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        auto = mode
        padding = ((0, 0),) * axes
        if input_size is not None:
            padding = same_padding(input_size, kernel, stride, dilation, mode)
    elif mode == "VALID":
        padding = ((0, 0),) * axes
    return ConvAttributes(kernel, stride, dilation, padding, groups, auto)


def _problem(
    attributes: dict[str, Any],
    weight: tuple[int, ...],
    stride: Sequence[int],
    dilation: Sequence[int],
    pads: Sequence[int],
    groups: int,
) -> str | None:
    kernel = weight[2:]
    axes = len(kernel)
    stated = tuple(int(k) for k in attributes.get("kernel_shape", kernel))
    checks = [
        (axes < 1, f"its weight has the shape {list(weight)}, which is not a kernel"),
        (stated != kernel, f"kernel_shape {list(stated)} contradicts the weight {list(weight)}"),
        (0 in weight, f"its weight of shape {list(weight)} is empty"),
        (
            groups < 1 or weight[0] % max(groups, 1) != 0,
            f"group={groups} does not divide its output channels",
        ),
        (
            len(stride) != axes or len(dilation) != axes or len(pads) != 2 * axes,
            "its strides, dilations or pads do not have one entry per axis",
        ),
        (min((*stride, *dilation), default=1) < 1, "a stride or dilation is below 1"),
        (min(pads, default=0) < 0, "it has negative padding"),
        (
            attributes.get("auto_pad", "NOTSET")
            not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"),
            f"auto_pad={attributes.get('auto_pad')!r} is not known",
        ),
    ]
    return next((problem for failed, problem in checks if failed), None)


def same_padding(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    mode: AutoPad,
) -> Pads:
    """Begin and end padding per axis such that the output has ``ceil(size / stride)`` points.

    If the sum is odd, SAME_UPPER puts the additional one at the end, SAME_LOWER at the beginning
    (ONNX, Conv).
    """
    pads = []
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        whole = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        small, large = whole // 2, whole - whole // 2
        pads.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return tuple(pads)


def spatial(shape: Shape | None, axes: int) -> tuple[int, ...] | None:
    """The spatial part of ``(batch, channels, *spatial)`` if all of it is known."""
    if shape is None or len(shape) != axes + 2:
        return None
    sizes = tuple(size for size in shape[2:] if size is not None)
    return sizes if len(sizes) == axes else None


def conv_geometry(
    attributes: ConvAttributes,
    channels: tuple[int, int],
    *,
    bias: bool,
    shapes: tuple[Shape | None, Shape | None],
    data_type: int | None,
    transposed: bool = False,
) -> Geometry:
    """The geometry of a conv with ``(in, out)`` channels.

    ``shapes`` are those of its input and its output value.
    """
    axes = len(attributes.kernel)
    input_size, output_size = (spatial(shape, axes) for shape in shapes)
    batch = next((s[0] for s in reversed(shapes) if s), None)
    return Geometry(
        in_channels=channels[0],
        out_channels=channels[1],
        kernel=attributes.kernel,
        stride=attributes.stride,
        dilation=attributes.dilation,
        groups=attributes.groups,
        bias=bias,
        input_size=input_size,
        output_size=output_size,
        batch=batch or 1,
        itemsize=itemsize(data_type),
        transposed=transposed,
    )


def itemsize(data_type: int | None) -> int:
    """Bytes per element; 4 where the type is not known."""
    dtype = None if data_type is None else numpy_dtype(data_type)
    return dtype.itemsize if dtype is not None else 4
