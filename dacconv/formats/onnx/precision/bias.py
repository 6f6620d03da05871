"""Biases that make up for what rounding the weights does to the mean of a layer's output.

Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (2019,
arXiv:1906.04721), section 4.2: rounding adds ``(W' - W) E[x]`` to the mean of each output channel,
with the mean of the input as it was measured. The borders of padded convs are not regarded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from dacconv.graph.types import FloatArray

HIGHEST = {8: 127, 7: 64}
"""The largest magnitude of a symmetric weight of so many bits in ONNX Runtime."""


def with_corrected_biases(
    proto: ModelProto, layers: Collection[str], means: Mapping[str, FloatArray], bits: int
) -> None:
    """Change the biases of the layers of ``proto`` in place; ``means`` are those of channels.

    A layer is left as it is if the mean of its input is not known, or if it has no bias.
    """
    initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.name not in layers or len(node.input) < 3 or node.input[0] not in means:
            continue
        weight = numpy_helper.to_array(initializers[node.input[1]]).astype(np.float64)
        shift = mean_shift(node, weight, means[node.input[0]], HIGHEST[bits])
        stored = initializers[node.input[2]]
        bias = numpy_helper.to_array(stored)
        if shift is not None and shift.size == bias.size:
            changed = (bias.astype(np.float64) - shift.reshape(bias.shape)).astype(bias.dtype)
            stored.CopyFrom(numpy_helper.from_array(changed, stored.name))


def mean_shift(
    node: NodeProto, weight: FloatArray, mean: FloatArray, highest: int
) -> FloatArray | None:
    """What rounding adds to the mean of each output of a layer; None where sizes do not fit."""
    attributes = {a.name: a for a in node.attribute}
    if node.op_type == "Gemm" and not ("transB" in attributes and attributes["transB"].i):
        weight = weight.T
    axes = tuple(range(1, weight.ndim))
    scale = np.abs(weight).max(axes, keepdims=True) / highest
    scale[scale == 0] = 1
    difference = np.clip(np.rint(weight / scale), -highest, highest) * scale - weight
    summed = difference.sum(axis=tuple(range(2, weight.ndim)))
    groups = int(attributes["group"].i) if "group" in attributes else 1
    if mean.ndim != 1 or summed.shape[1] * groups != mean.size or summed.shape[0] % groups:
        return None
    by_group = summed.reshape(groups, -1, summed.shape[1])
    result: FloatArray = np.einsum("goi,gi->go", by_group, mean.reshape(groups, -1)).reshape(-1)
    return result
