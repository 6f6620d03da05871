"""The algebra of several convs: branches that are added or concatenated, and chains, as one conv.

Exact at every position, the border included, or :class:`~dacconv.graph.convs.Inexact` is raised.
Arithmetic is float64. Sources: ACNet (arXiv 1908.03930, section 3.2), RepVGG (2101.03697,
section 3.3), Diverse Branch Block (2103.13425, section 3.2, transforms II, III, IV and VI).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from dacconv.graph.convs import (
    F64,
    Inexact,
    Pads,
    as_f64,
    bias_of,
    constant_response,
    explicit_padding,
    is_padded,
    is_pointwise,
    regroup,
)
from dacconv.graph.types import Conv

Sizes = tuple[int | None, ...] | None


def add_convs(convs: Sequence[Conv], input_size: Sizes = None) -> Conv:
    """``conv_0(x) + conv_1(x) + ...`` as one conv, small kernels embedded in large ones.

    Args:
        convs: convs with the same numbers of input and output channels.
        input_size: the spatial size of ``x``; None for an axis that is not fixed.

    Raises:
        Inexact: strides, output sizes or border handling differ.
    """
    if len({(conv.in_channels, conv.out_channels) for conv in convs}) > 1:
        raise Inexact("the branches have different numbers of channels")
    groups = math.gcd(*(conv.groups for conv in convs))
    aligned = [regroup(conv, groups) for conv in align(convs, input_size)]
    weight = sum(as_f64(conv.weight) for conv in aligned)
    biases = [as_f64(conv.bias) for conv in aligned if conv.bias is not None]
    return replace(
        aligned[0], weight=np.asarray(weight), bias=np.asarray(sum(biases)) if biases else None
    )


def concat_convs(convs: Sequence[Conv], input_size: Sizes = None) -> Conv:
    """Convs of one input, their outputs concatenated along the channels, as one conv of 1 group.

    Raises:
        Inexact: strides, output sizes or border handling differ.
    """
    if any(conv.transposed and conv.groups > 1 for conv in convs):
        raise Inexact("grouped transposed convs cannot be joined")
    aligned = [regroup(conv, 1) for conv in align(convs, input_size)]
    weight = np.concatenate([as_f64(conv.weight) for conv in aligned])
    biased = any(conv.bias is not None for conv in aligned)
    bias = np.concatenate([bias_of(conv) for conv in aligned]) if biased else None
    return replace(aligned[0], weight=weight, bias=bias)


def compose(first: Conv, second: Conv) -> Conv:
    """``second(first(x))`` as one conv.

    Where ``second`` pads with zeros, it reads zeros around the output of ``first``, while one
    conv reads what ``first`` computes there. They agree only if ``first`` has no bias and a
    kernel of size 1 without padding along the axes that ``second`` pads.

    Raises:
        Inexact: the border would differ, or a transposed conv is next to a conv that is not 1x1.
    """
    if first.out_channels != second.in_channels:
        raise Inexact("the numbers of channels differ")
    if first.transposed or second.transposed:
        return _compose_transposed(first, second)
    first, second = explicit_padding(first), explicit_padding(second)
    padding, mode = _chain_padding(first, second)
    groups = math.gcd(first.groups, second.groups)
    a, b = regroup(first, groups), regroup(second, groups)
    steps, dilation, kernel = _chain_taps(a, b)
    weight = np.zeros((b.out_channels, a.weight.shape[1], *kernel))
    for tap_b in _taps(b):
        left = _tap(b, tap_b)
        for tap_a in _taps(a):
            at = tuple(
                (u * i + v * j) // d
                for (u, v), i, j, d in zip(steps, tap_a, tap_b, dilation, strict=True)
            )
            weight[_index(at)] += np.matmul(left, _tap(a, tap_a)).reshape(weight.shape[:2])
    stride = tuple(s * t for s, t in zip(a.stride, b.stride, strict=True))
    bias = _chain_bias(first, second)
    return Conv(weight, bias, stride, padding, dilation, groups, pad_mode=mode)


def composed_weights(first: Conv, second: Conv) -> int:
    """The number of weights of the result of :func:`compose`, without computing it."""
    if first.transposed or second.transposed:
        kernel = first.kernel if first.transposed else second.kernel
    else:
        kernel = _chain_taps(first, second)[2]
    groups = math.gcd(first.groups, second.groups)
    return second.out_channels * (first.in_channels // groups) * math.prod(kernel)


def align(convs: Sequence[Conv], input_size: Sizes = None) -> list[Conv]:
    """The same convs with one kernel size, padding and dilation; small kernels get zeros around.

    Raises:
        Inexact: as in :func:`add_convs`.
    """
    if len({conv.transposed for conv in convs}) > 1:
        raise Inexact("a transposed conv and a plain one")
    if len({conv.stride for conv in convs}) > 1:
        raise Inexact("the strides differ")
    if _same_geometry(convs):
        return list(convs)
    if convs[0].transposed:
        raise Inexact("transposed convs of different kernel sizes or paddings")
    convs = [explicit_padding(conv) for conv in convs]
    modes = {conv.pad_mode for conv in convs if is_padded(conv)} or {"zeros"}
    if len(modes) > 1:
        raise Inexact(f"the borders are filled in different ways ({', '.join(sorted(modes))})")
    axes = [_align_axis(convs, axis, input_size) for axis in range(len(convs[0].kernel))]
    return [_embed(conv, index, axes, next(iter(modes))) for index, conv in enumerate(convs)]


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis of the common kernel; ``starts`` has the place of each conv's first tap in it."""

    kernel: int
    dilation: int
    padding: tuple[int, int]
    starts: tuple[int, ...]


def _align_axis(convs: Sequence[Conv], axis: int, input_size: Sizes) -> _Axis:
    begins = [conv.padding[axis][0] for conv in convs]
    reaches = [conv.dilation[axis] * (conv.kernel[axis] - 1) for conv in convs]
    extents = [sum(conv.padding[axis]) - reach for conv, reach in zip(convs, reaches, strict=True)]
    extent = _common_extent(
        extents, convs[0].stride[axis], None if input_size is None else input_size[axis]
    )
    begin = max(begins)
    starts = [begin - each for each in begins]
    span = max(start + reach for start, reach in zip(starts, reaches, strict=True))
    steps = [conv.dilation[axis] for conv in convs if conv.kernel[axis] > 1]
    dilation = math.gcd(*steps, *starts) or 1
    return _Axis(
        span // dilation + 1,
        dilation,
        (begin, extent + span - begin),
        tuple(start // dilation for start in starts),
    )


def _common_extent(extents: Sequence[int], stride: int, size: int | None) -> int:
    """The largest of ``padding - reach``, if all give the same number of output positions."""
    largest = max(extents)
    if min(extents) == largest:
        return largest
    if size is None or len({(size + extent - 1) // stride for extent in extents}) > 1:
        raise Inexact("the kernels are not centred on each other, or the output sizes differ")
    return largest


def _embed(conv: Conv, index: int, axes: Sequence[_Axis], mode: str) -> Conv:
    weight = np.zeros((*conv.weight.shape[:2], *(axis.kernel for axis in axes)))
    places = tuple(
        slice(
            axis.starts[index],
            axis.starts[index] + (k - 1) * d // axis.dilation + 1,
            d // axis.dilation if k > 1 else 1,
        )
        for axis, k, d in zip(axes, conv.kernel, conv.dilation, strict=True)
    )
    weight[_index(places)] = conv.weight
    return replace(
        conv,
        weight=weight,
        padding=tuple(axis.padding for axis in axes),
        dilation=tuple(axis.dilation for axis in axes),
        pad_mode=mode,
    )


def _same_geometry(convs: Sequence[Conv]) -> bool:
    def key(conv: Conv) -> tuple[object, ...]:
        mode = conv.pad_mode if is_padded(conv) else None
        dilation = tuple(d if k > 1 else 1 for k, d in zip(conv.kernel, conv.dilation, strict=True))
        return conv.kernel, conv.padding, dilation, conv.auto_pad, mode, conv.output_padding

    return len({key(conv) for conv in convs}) == 1


def _chain_padding(first: Conv, second: Conv) -> tuple[Pads, str]:
    if not is_padded(second):
        return first.padding, first.pad_mode
    if second.pad_mode != "zeros":
        if not is_pointwise(first):
            raise Inexact(f"{second.pad_mode!r} padding between the convs")
        return second.padding, second.pad_mode
    if is_padded(first) and first.pad_mode != "zeros":
        raise Inexact("the borders are filled in different ways")
    if first.bias is not None and np.any(first.bias):
        raise Inexact(
            "the second conv pads with zeros where the bias of the first would reach, "
            "so the border would differ"
        )
    pads = []
    for axis, pad in enumerate(second.padding):
        if any(pad) and (first.kernel[axis] != 1 or any(first.padding[axis])):
            raise Inexact(
                "the second conv pads with zeros what the first, which is wider than 1x1 "
                "or padded, would compute, so the border would differ"
            )
        stride = first.stride[axis]
        before, after = first.padding[axis]
        pads.append((before + stride * pad[0], after + stride * pad[1]))
    return tuple(pads), "zeros"


def _chain_taps(
    first: Conv, second: Conv
) -> tuple[list[tuple[int, int]], tuple[int, ...], tuple[int, ...]]:
    """Per axis: the distances between taps of both convs, the common dilation and kernel size."""
    steps = [
        (d if k > 1 else 0, e * s if m > 1 else 0)
        for k, d, m, e, s in zip(
            first.kernel, first.dilation, second.kernel, second.dilation, first.stride,
            strict=True,
        )
    ]  # fmt: skip
    dilation = tuple(math.gcd(*pair) or 1 for pair in steps)
    kernel = tuple(
        (u * (k - 1) + v * (m - 1)) // d + 1
        for (u, v), k, m, d in zip(steps, first.kernel, second.kernel, dilation, strict=True)
    )
    return steps, dilation, kernel


def _chain_bias(first: Conv, second: Conv) -> F64 | None:
    if first.bias is None:
        return None if second.bias is None else as_f64(second.bias)
    return bias_of(second) + constant_response(second, as_f64(first.bias))


def _compose_transposed(first: Conv, second: Conv) -> Conv:
    """A transposed conv before or after a pointwise conv."""
    groups = math.gcd(first.groups, second.groups)
    a, b = regroup(first, groups), regroup(second, groups)
    if is_pointwise(second) and second.auto_pad is None:
        wide, bias = first, _chain_bias(first, second)
        parts = {tap: np.matmul(_tap(b, (0,) * len(tap)), _tap(a, tap)) for tap in _taps(a)}
    elif is_pointwise(first) and first.auto_pad is None:
        if first.bias is not None and np.any(first.bias):
            raise Inexact("a transposed conv spreads the bias of the conv before it unevenly")
        wide, bias = second, second.bias if second.bias is None else as_f64(second.bias)
        parts = {tap: np.matmul(_tap(b, tap), _tap(a, (0,) * len(tap))) for tap in _taps(b)}
    else:
        raise Inexact("a transposed conv merges with a 1x1 conv only")
    weight = np.zeros((b.out_channels, a.weight.shape[1], *wide.kernel))
    for tap, part in parts.items():
        weight[_index(tap)] = part.reshape(weight.shape[:2])
    return replace(wide, weight=weight, bias=bias, groups=groups, transposed=True)


def _taps(conv: Conv) -> Iterator[tuple[int, ...]]:
    return product(*map(range, conv.kernel))


def _index(places: Sequence[int | slice]) -> Any:
    """An index of places along the spatial axes, for all channels."""
    return (..., *places)


def _tap(conv: Conv, at: tuple[int, ...]) -> F64:
    """One tap of the kernel: matrices ``(groups, out / groups, in / groups)``."""
    tap = as_f64(conv.weight[_index(at)])
    return tap.reshape(conv.groups, -1, conv.weight.shape[1])
