"""The constants of convolutions and linear layers as values."""

from __future__ import annotations

from dacconv.formats.onnx.document import Entry
from dacconv.formats.onnx.geometry import attributes_of, conv_attributes, spatial
from dacconv.formats.onnx.linear import linear_conv, read_linear
from dacconv.formats.onnx.operators import CannotEvaluate
from dacconv.formats.onnx.roles import Known
from dacconv.graph.convs import swap_channels
from dacconv.graph.types import Conv


def read_conv(entry: Entry, known: Known) -> Conv:
    """The layer at a Conv, ConvTranspose, Gemm or MatMul; see :class:`dacconv.graph.types.Conv`.

    Raises:
        CannotEvaluate: it is none of these, or its weight cannot be read.
    """
    if entry.op in ("Gemm", "MatMul"):
        linear = read_linear(entry, known.constants, known.inferred)
        if linear is None or linear.skip:
            raise CannotEvaluate(linear.skip if linear and linear.skip else "no constant matrix")
        return linear_conv(entry, known.constants, linear)
    if entry.op not in ("Conv", "ConvTranspose"):
        raise CannotEvaluate(f"a {entry.op}, not a convolution")
    transposed = entry.op == "ConvTranspose"
    names = entry.proto.input
    weight = known.constants.value(names[1])
    given = attributes_of(entry)
    if transposed:
        if "output_shape" in given:
            raise CannotEvaluate("it states its output_shape instead of its padding")
        weight = swap_channels(weight, max(int(given.get("group", 1)), 1))
    axes = weight.ndim - 2
    same = str(given.get("auto_pad", "")).startswith("SAME") and not transposed
    data = known.inferred.shapes.get(names[0]) if same else None
    attributes = conv_attributes(entry, weight.shape, spatial(data, axes))
    if attributes.fault:
        raise CannotEvaluate(attributes.fault)
    extra = given.get("output_padding", (0,) * axes) if transposed else ()
    return Conv(
        weight=weight,
        bias=known.constants.value(names[2]) if len(names) > 2 and names[2] else None,
        stride=attributes.stride,
        padding=attributes.padding,
        dilation=attributes.dilation,
        groups=attributes.groups,
        auto_pad=attributes.auto_pad,
        transposed=transposed,
        output_padding=tuple(int(each) for each in extra),
    )
