"""A conv as a value, run by torch in float64: the judge of the kernel algebra."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from dacconv.graph.convs import explicit_padding, swap_channels
from dacconv.graph.patches import as_images, patches
from dacconv.graph.types import Affine, Conv, FloatArray

CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def tensor(array):
    return None if array is None else torch.tensor(np.asarray(array, dtype=np.float64))


def run(conv: Conv, x: np.ndarray) -> np.ndarray:
    """``x`` is ``(batch, channels, *spatial)``, or ``(..., channels)`` for a linear layer."""
    value, weight, bias = tensor(x), tensor(conv.weight), tensor(conv.bias)
    if not conv.kernel:
        return F.linear(value, weight, bias).numpy()
    if conv.transposed:
        stored = torch.tensor(swap_channels(np.asarray(conv.weight, np.float64), conv.groups))
        full = TRANSPOSED[len(conv.kernel)](
            value, stored, bias, conv.stride, 0, 0, conv.groups, conv.dilation
        )
        for axis, ((begin, end), extra) in enumerate(
            zip(conv.padding, conv.output_padding or (0,) * len(conv.kernel), strict=True)
        ):
            full = F.pad(full, [0, 0] * (full.ndim - 3 - axis) + [-begin, extra - end])
            if extra > end:  # what the output padding adds beyond the full output is the bias
                tail = full.narrow(axis + 2, full.shape[axis + 2] - (extra - end), extra - end)
                tail += 0 if bias is None else bias.view(1, -1, *[1] * len(conv.kernel))
        return full.numpy()
    conv = explicit_padding(conv)
    flat = [side for pad in reversed(conv.padding) for side in pad]
    if any(flat):
        mode = "constant" if conv.pad_mode == "zeros" else conv.pad_mode
        value = F.pad(value, flat, mode=mode)
    return CONVS[len(conv.kernel)](
        value, weight, bias, conv.stride, 0, conv.dilation, conv.groups
    ).numpy()


def apply(affine: Affine, x: np.ndarray, axis: int = 1) -> np.ndarray:
    shape = [1] * x.ndim
    shape[axis] = -1
    return x * affine.scale.reshape(shape) + affine.shift.reshape(shape)


def assert_same(result: np.ndarray, expected: np.ndarray, tolerance: float = 1e-10) -> None:
    assert result.shape == expected.shape
    scale = np.abs(expected).max(initial=1e-30)
    assert np.abs(result - expected).max(initial=0.0) <= tolerance * scale


def make_conv(
    seed: int,
    out: int,
    channels: int,
    kernel,
    *,
    stride=None,
    padding=None,
    dilation=None,
    groups=1,
    bias=True,
    **more,
) -> Conv:
    rng = np.random.default_rng(seed)
    ones = (1,) * len(kernel)
    return Conv(
        rng.normal(size=(out, channels // groups, *kernel)),
        rng.normal(size=out) * 3 if bias else None,
        stride or ones,
        padding or ((0, 0),) * len(kernel),
        dilation or ones,
        groups,
        **more,
    )


def make_affine(seed: int, channels: int, *, shift: bool = True) -> Affine:
    """Far from (1, 0): some scales are negative, some tiny."""
    rng = np.random.default_rng(seed)
    scale = rng.normal(size=channels) * 10 ** rng.uniform(-2, 2, size=channels)
    return Affine(scale, rng.normal(size=channels) * 5 if shift else np.zeros(channels))


def sample(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


seeds = st.integers(0, 2**31)


def convolve(conv: Conv, x: FloatArray) -> FloatArray:
    """The output of an ungrouped conv in float32, ``(batch, out, *size)``."""
    kernel = conv.weight.reshape(conv.out_channels, -1).astype(np.float32).T
    parts = []
    for part, size, rows in patches(conv, x):
        output = rows @ kernel
        if conv.bias is not None:
            output += conv.bias.astype(np.float32)
        parts.append(as_images(output, part.stop - part.start, size))
    return np.concatenate(parts)
