"""The input patches of a conv as the rows of a matrix (im2col)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dacconv.graph.types import Array, Conv, FloatArray

CHUNK_BYTES = 64 * 2**20
"""Patches are computed in pieces of about this size."""

_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def paddings(conv: Conv, sizes: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """The padding ``(begin, end)`` per spatial axis for an input of these sizes.

    ``auto_pad`` is resolved as ONNX's Conv does.
    """
    if conv.auto_pad is None:
        return conv.padding
    pads = []
    for size, k, stride, dilation in zip(
        sizes, conv.kernel, conv.stride, conv.dilation, strict=True
    ):
        out = -(-size // stride)
        total = max((out - 1) * stride + dilation * (k - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if conv.auto_pad == "SAME_UPPER" else (large, small))
    return tuple(pads)


def patches(conv: Conv, x: FloatArray) -> Iterator[tuple[slice, tuple[int, ...], FloatArray]]:
    """The patches of ``x`` ``(batch, in, *size)``, in pieces of whole samples.

    Yields:
        The slice of the samples, the spatial size of the output, and the patches as a float32
        matrix ``(samples * positions, in * prod(kernel))`` with columns in the order of
        ``conv.weight[0].ravel()``.
    """
    taps = math.prod(conv.kernel)
    per_sample = x[0].size * taps * 4 // math.prod(conv.stride) if len(x) else 1
    step = max(1, CHUNK_BYTES // max(per_sample, 1))
    for start in range(0, len(x), step):
        part = slice(start, min(start + step, len(x)))
        windows = _windows(conv, x[part])
        axes = len(conv.kernel)
        size = windows.shape[2 : 2 + axes]
        order = (0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes))
        rows = windows.transpose(order).reshape(-1, x.shape[1] * taps)
        yield part, size, np.ascontiguousarray(rows, dtype=np.float32)


def as_images(rows: FloatArray, samples: int, size: tuple[int, ...]) -> FloatArray:
    """Rows ``(samples * positions, out)`` as activations ``(samples, out, *size)``."""
    images = rows.reshape(samples, *size, -1)
    return np.ascontiguousarray(np.moveaxis(images, -1, 1))


def _windows(conv: Conv, x: Array) -> Array:
    """A view ``(batch, in, *output, *kernel)``."""
    sizes = tuple(int(size) for size in x.shape[2:])
    pads = paddings(conv, sizes)
    crop = tuple(
        slice(max(-b, 0), size - max(-e, 0)) for (b, e), size in zip(pads, sizes, strict=True)
    )
    positive = [(max(b, 0), max(e, 0)) for b, e in pads]
    padded = np.pad(x[(slice(None), slice(None), *crop)], [(0, 0), (0, 0), *positive],
                    mode=_MODES[conv.pad_mode])  # type: ignore[call-overload]  # fmt: skip
    spans = tuple(d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel, strict=True))
    axes = tuple(range(2, padded.ndim))
    windows = sliding_window_view(padded, spans, axis=axes)
    strides = tuple(slice(None, None, s) for s in conv.stride)
    taps = tuple(slice(None, None, d) for d in conv.dilation)
    return np.asarray(windows[(slice(None), slice(None), *strides, *taps)])
