"""The algebra of one conv: fold an affine, pad, regroup; and simple operations as convs.

Everything here is exact: a function that cannot keep the result the same at every position,
the border included, raises :class:`Inexact` with the reason. Arithmetic is float64. Sources:
RepVGG (arXiv 2101.03697, section 3.3), Diverse Branch Block (arXiv 2103.13425, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dacconv.errors import UnsupportedError
from dacconv.graph.types import Affine, Conv, FloatArray

F64 = NDArray[np.float64]
Pads = tuple[tuple[int, int], ...]

SAME_VALUE = 1e-5
"""The relative difference up to which two constants computed in float32 count as equal."""


class Inexact(Exception):  # noqa: N818
    """A merge would change the result; the text is the reason, for the user."""


def fold_affine(conv: Conv, affine: Affine) -> Conv:
    """``affine(conv(x))`` as one conv (also transposed or linear): scaled rows and a bias.

    Raises:
        Inexact: the affine has another number of channels.
    """
    scale, shift = _per_channel(affine, conv.out_channels)
    weight = as_f64(conv.weight) * _along(scale, conv, axis=0)
    bias = shift if conv.bias is None else scale * as_f64(conv.bias) + shift
    return replace(conv, weight=weight, bias=_or_none(bias, keep=conv.bias is not None))


def absorb_affine(affine: Affine, conv: Conv) -> Conv:
    """``conv(affine(x))`` as one conv: scaled columns, and the shift summed into the bias.

    Raises:
        Inexact: the shift would have to reach the padded border, where the conv sees zeros;
            or the number of channels differs.
    """
    scale, shift = _per_channel(affine, conv.in_channels)
    if shift.any():
        _require_no_border(conv, "its shift would be missing at the border that the conv pads")
    columns = scale.reshape(conv.groups, 1, -1)  # the same for every output of a group
    weight = as_f64(conv.weight)
    grouped = weight.reshape(conv.groups, -1, weight.shape[1], *conv.kernel)
    grouped = grouped * columns.reshape(*columns.shape, *(1,) * len(conv.kernel))
    bias = bias_of(conv) + constant_response(conv, shift)
    return replace(
        conv, weight=grouped.reshape(weight.shape), bias=_or_none(bias, keep=conv.bias is not None)
    )


def constant_response(conv: Conv, value: F64) -> F64:
    """The output ``(out,)`` of the conv, without bias, for an input constant per channel.

    ``value`` is ``(in,)``.
    """
    summed = as_f64(conv.weight).reshape(*conv.weight.shape[:2], -1).sum(axis=2)
    groups = summed.reshape(conv.groups, -1, summed.shape[1])
    return np.asarray(np.matmul(groups, value.reshape(conv.groups, -1, 1)).reshape(-1))


def pad_input(pads: Pads, conv: Conv) -> Conv:
    """``conv(zero_pad(x))`` as one conv; ``pads`` is begin and end per spatial axis.

    Raises:
        Inexact: the conv fills its own border with something other than zeros, or is transposed.
    """
    conv = explicit_padding(conv)
    if conv.transposed:
        raise Inexact("a transposed conv cannot pad its input with zeros")
    if is_padded(conv) and conv.pad_mode != "zeros":
        raise Inexact(f"the conv pads by {conv.pad_mode!r}, not with zeros")
    if any(side < 0 for pad in pads for side in pad):
        raise Inexact("a negative padding crops the input")
    return replace(conv, padding=_sum_pads(conv.padding, pads), pad_mode="zeros")


def pad_output(conv: Conv, pads: Pads, value: FloatArray | float) -> Conv:
    """``constant_pad(conv(x))`` as one conv, where the border holds the bias of the conv.

    A kernel of size 1 computes the bias from zeros. So padding the input with zeros pads the
    output with the bias (Diverse Branch Block's padded BatchNorm, section 4.1).

    Raises:
        Inexact: the kernel is wider than 1 along a padded axis, or the border is not the bias.
    """
    conv = explicit_padding(conv)
    if conv.transposed or (is_padded(conv) and conv.pad_mode != "zeros"):
        raise Inexact("only a conv that pads with zeros can compute the padded border itself")
    if any(side < 0 for pad in pads for side in pad):
        raise Inexact("a negative padding crops the output")
    axes = zip(pads, conv.kernel, conv.stride, strict=True)
    if any(any(pad) and (k != 1 or s != 1) for pad, k, s in axes):
        raise Inexact("the padding follows a kernel wider than 1x1, which would see the border")
    bias, border = bias_of(conv), np.broadcast_to(as_f64(value), (conv.out_channels,))
    if not np.allclose(bias, border, rtol=SAME_VALUE, atol=SAME_VALUE * _largest(bias)):
        raise Inexact("the border is padded with something other than the bias of the 1x1 conv")
    return replace(conv, padding=_sum_pads(conv.padding, pads), pad_mode="zeros")


def regroup(conv: Conv, groups: int) -> Conv:
    """The same conv with fewer groups; ``groups`` divides the old number.

    The kernel entries between channels of different old groups are zero.
    """
    if groups == conv.groups:
        return conv
    merged = conv.groups // groups
    weight = as_f64(conv.weight)
    out, each = weight.shape[0] // conv.groups, weight.shape[1]
    old = weight.reshape(groups, merged, out, each, *conv.kernel)
    new = np.zeros((groups, merged, out, merged, each, *conv.kernel))
    for index in range(merged):
        new[:, index, :, index] = old[:, index]
    shape = (weight.shape[0], merged * each, *conv.kernel)
    return replace(conv, weight=new.reshape(shape), groups=groups)


def identity(channels: int, axes: int) -> Conv:
    """The conv that returns its input: depthwise, 1 wide, over ``axes`` spatial axes."""
    return scaling(Affine(np.ones(()), np.zeros(())), channels, axes)


def scaling(affine: Affine, channels: int, axes: int) -> Conv:
    """An affine as a depthwise conv that is 1 wide, over ``axes`` spatial axes."""
    scale, shift = _per_channel(affine, channels)
    ones = (1,) * axes
    weight, bias = np.array(scale).reshape(channels, 1, *ones), _or_none(shift, keep=False)
    return Conv(weight, bias, ones, ((0, 0),) * axes, ones, groups=channels)


def average_pool(
    channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Pads,
    *,
    dilation: Sequence[int] | None = None,
    count_include_pad: bool = True,
) -> Conv:
    """Average pooling as a depthwise conv (Diverse Branch Block, transform V).

    Raises:
        Inexact: windows at the border divide by the number of real positions only.
    """
    if not count_include_pad and any(any(pad) for pad in padding):
        raise Inexact("the average pool does not count its padding, so its border differs")
    weight = np.full((channels, 1, *kernel), 1.0 / math.prod(kernel))
    spread = tuple(dilation) if dilation is not None else (1,) * len(kernel)
    return Conv(weight, None, tuple(stride), tuple(padding), spread, groups=channels)


def explicit_padding(conv: Conv) -> Conv:
    """The same conv with its ``auto_pad`` as explicit padding.

    Raises:
        Inexact: the padding depends on the size of the input.
    """
    if conv.auto_pad is None:
        return conv
    geometry = zip(conv.kernel, conv.stride, conv.dilation, strict=True)
    if conv.transposed or any(k > 1 and s > 1 for k, s, _ in geometry):
        raise Inexact(f"auto_pad={conv.auto_pad} with a stride depends on the input's size")
    pads = []
    for k, d in zip(conv.kernel, conv.dilation, strict=True):
        small, large = d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2
        pads.append((small, large) if conv.auto_pad == "SAME_UPPER" else (large, small))
    return replace(conv, padding=tuple(pads), auto_pad=None)


def swap_channels(weight: FloatArray, groups: int = 1) -> FloatArray:
    """Turn ``(in, out / groups, *kernel)`` into ``(out, in / groups, *kernel)``, and back.

    The first is how frameworks store transposed convs, the second how ``Conv`` does.
    """
    first, second, *kernel = weight.shape
    split = weight.reshape(groups, first // groups, second, *kernel)
    return split.swapaxes(1, 2).reshape(groups * second, first // groups, *kernel)


def work(conv: Conv) -> float:
    """MACs per position of the input, ignoring the border."""
    strides = 1 if conv.transposed else math.prod(conv.stride)
    return math.prod(conv.weight.shape) / strides


def density(conv: Conv) -> float:
    """Positions of the output per position of the input."""
    strides = math.prod(conv.stride)
    return float(strides) if conv.transposed else 1 / strides


def is_padded(conv: Conv) -> bool:
    """Whether the conv pads its input (or, transposed, crops its output)."""
    return conv.auto_pad is not None or any(any(pad) for pad in conv.padding)


def is_pointwise(conv: Conv) -> bool:
    """Whether every output position depends on the same input position alone."""
    ones = all(k == 1 and s == 1 for k, s in zip(conv.kernel, conv.stride, strict=True))
    return ones and not any(any(p) for p in conv.padding) and not any(conv.output_padding)


def bias_of(conv: Conv) -> F64:
    """The bias ``(out,)`` in float64, zeros where there is none."""
    return np.zeros(conv.out_channels) if conv.bias is None else as_f64(conv.bias)


def as_f64(array: FloatArray | float) -> F64:
    """The array in float64; not copied if it is float64 already.

    Raises:
        UnsupportedError: it holds texts.
    """
    try:
        return np.asarray(array, dtype=np.float64)
    except ValueError as error:
        raise UnsupportedError("a weight or bias holds texts, not numbers") from error


def _per_channel(affine: Affine, channels: int) -> tuple[F64, F64]:
    sizes = {int(affine.scale.size), int(affine.shift.size)}
    if not sizes <= {1, channels}:
        raise Inexact(f"it has {max(sizes)} channels where the conv has {channels}")
    scale, shift = as_f64(affine.scale).reshape(-1), as_f64(affine.shift).reshape(-1)
    return np.broadcast_to(scale, (channels,)), np.broadcast_to(shift, (channels,))


def _along(values: F64, conv: Conv, axis: int) -> F64:
    shape = [1] * conv.weight.ndim
    shape[axis] = -1
    return values.reshape(shape)


def _require_no_border(conv: Conv, reason: str) -> None:
    if conv.transposed:
        raise Inexact("a transposed conv spreads a constant unevenly")
    conv = explicit_padding(conv) if is_pointwise_kernel(conv) else conv
    if is_padded(conv) and conv.pad_mode == "zeros":
        raise Inexact(reason)


def is_pointwise_kernel(conv: Conv) -> bool:
    """Whether the kernel is 1 wide along every axis, whatever its stride and padding."""
    return all(k == 1 for k in conv.kernel)


def _or_none(bias: F64, *, keep: bool) -> F64 | None:
    return np.array(bias) if keep or bias.any() else None


def _sum_pads(first: Pads, second: Pads) -> Pads:
    return tuple((a + c, b + d) for (a, b), (c, d) in zip(first, second, strict=True))


def _largest(values: F64) -> float:
    return float(np.abs(values).max(initial=0.0))
