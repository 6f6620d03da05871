"""The scale of a model's input, implied by its first BatchNorm or the biases of its first conv.

A BatchNorm after the first conv stores the mean and the variance of that conv's output on the
training images. Natural images have similar statistics everywhere, so the gain and the offset
that turn pixels into the model's input follow from these.

Without a BatchNorm (it may have been folded), the biases are compared with the response of the
first conv to pixels in 0..1. A conv trained on 0..255 responds very little to such pixels: 240
times less than its biases in open_nsfw. Networks trained on 0..1 or on about -2..2 have biases
of 0.4 to 2.3 times the response.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dacconv.formats.base import Model
from dacconv.fusions.merged import MergedModel
from dacconv.graph.patches import patches
from dacconv.graph.types import Conv, FloatArray, Node
from dacconv.support.threads import one_blas_thread

LARGE_BIAS_RATIO = 16
"""Biases of more times the response show that the first conv was trained on 0..255."""
BYTES = 255.0


@dataclass(frozen=True, slots=True, eq=False)
class PixelScale:
    """A model's input as ``gain * pixel + offset`` per channel, both ``(channels,)``.

    ``description`` says where the scale comes from. ``guessed`` tells whether it is only likely,
    because neither the options nor the model's statistics show how the input is scaled; then
    ``alternatives`` are other plausible scales.
    """

    gain: NDArray[np.floating]
    offset: NDArray[np.floating]
    description: str
    guessed: bool = False
    alternatives: tuple[PixelScale, ...] = ()

    def apply(self, images: FloatArray) -> FloatArray:
        """Images ``(batch, channels, *size)`` in 0..1, scaled as the model's input."""
        shape = (-1, *(1,) * (images.ndim - 2))
        scaled = images * self.gain.reshape(shape) + self.offset.reshape(shape)
        return np.asarray(scaled, np.float32)


def scale_from_batchnorm(
    model: Model, source: str, images: FloatArray, *, channels_last: bool
) -> PixelScale | None:
    """The scale that fits the stored statistics of the BatchNorm after the first conv.

    ``source`` is the name of the model's image input. None where there is no such BatchNorm, or
    where it does not determine the scale.
    """
    if channels_last:
        return None
    graph = model.graph()
    first = next((n for n in graph.nodes if source in n.inputs), None)
    if first is None or first.op != "conv":
        return None
    norm = next((n for n in graph.nodes if first.output in n.inputs), None)
    stored = model.statistics(norm.name) if norm is not None and norm.op == "affine" else None
    if stored is None:
        return None
    return _fit_to_statistics(model, first, stored, images)


def _fit_to_statistics(
    model: Model,
    first: Node,
    stored: tuple[NDArray[np.float64], NDArray[np.float64]],
    images: FloatArray,
) -> PixelScale | None:
    mean, variance = stored
    conv = model.conv(first.name)
    channels = conv.in_channels
    if conv.groups != 1 or conv.transposed or channels != images.shape[1]:
        return None
    kernel = conv.weight.reshape(conv.out_channels, -1).astype(np.float64)
    bias = 0.0 if conv.bias is None else conv.bias.astype(np.float64)
    response = _response(conv, images)
    usable = (response > 1e-12) & (variance > 1e-12)
    if usable.sum() < channels + 1:
        return None
    gain = float(np.sqrt(np.median(variance[usable] / response[usable])))
    sums = kernel.reshape(len(kernel), channels, -1).sum(axis=2)
    target = mean - bias - gain * (sums @ images.mean(axis=(0, *range(2, images.ndim))))
    weights = 1 / np.sqrt(variance + 1e-12)
    left = sums * weights[:, None]
    ridge = 1e-3 * float((left**2).mean()) * np.eye(channels)
    middle_offset = -gain * images.mean(axis=(0, *range(2, images.ndim)))
    residual = (target - sums @ middle_offset) * weights
    with one_blas_thread():
        rest = np.linalg.solve(left.T @ left + ridge * len(left), left.T @ residual)
    offset = middle_offset + rest
    if not (np.isfinite(gain) and np.isfinite(offset).all()) or gain == 0:
        return None
    description = (
        f"the first BatchNorm implies an input of about {offset.mean():.3g} to "
        f"{offset.mean() + gain:.3g}"
    )
    return PixelScale(np.full(channels, gain), offset, description)


def scale_from_biases(view: Model | MergedModel, images: FloatArray) -> PixelScale | None:
    """The scale to 0..255, centred at zero or not, where the first conv's biases imply one.

    None where they do not.
    """
    ratio = bias_ratio(view, images)
    if ratio is None or not LARGE_BIAS_RATIO < ratio < math.inf:
        return None
    conv = view.conv(next(node for node in view.graph().nodes if node.op == "conv").name)
    bias = np.zeros(1) if conv.bias is None else conv.bias.astype(np.float64)
    middle = BYTES * images.mean(axis=(0, *range(2, images.ndim)))
    sums = conv.weight.reshape(len(bias), conv.in_channels, -1).sum(axis=2)
    centred = float((bias**2).sum()) < float(((bias + sums @ middle) ** 2).sum())
    description = (
        f"the first layer's biases are {ratio:.0f} times its response to pixels in "
        f"0..1: 0..255{' centred at zero' if centred else ''} was assumed"
    )
    return PixelScale(np.full(len(middle), BYTES), -middle if centred else 0 * middle, description)


def bias_ratio(view: Model | MergedModel, images: FloatArray) -> float | None:
    """The first conv's biases over the deviation of its response to ``images``.

    None where the first conv has no biases, does not read the images, or is larger than they are.
    """
    first = next((node for node in view.graph().nodes if node.op == "conv"), None)
    if first is None or first.skip is not None:
        return None
    conv = view.conv(first.name)
    if conv.in_channels != images.shape[1] or conv.groups != 1 or conv.bias is None:
        return None
    reaches = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel, strict=True)]
    sizes = images.shape[2:]
    if conv.transposed or len(reaches) != len(sizes) or any(map(operator.ge, reaches, sizes)):
        return None
    bias = conv.bias.astype(np.float64)
    size = float(np.sqrt(_response(conv, images).mean()))
    strength = float(np.sqrt((bias**2).mean()))
    return strength / size if size > 0 and strength > 0 else None


def _response(conv: Conv, images: FloatArray) -> NDArray[np.float64]:
    """The variance of each output of a conv without its bias, away from the border."""
    kernel = conv.weight.reshape(conv.out_channels, -1).astype(np.float64)
    inner = replace(conv, padding=tuple((0, 0) for _ in conv.padding), auto_pad=None)
    rows = np.concatenate([r for _, _, r in patches(inner, images[:32])])
    covariance = np.cov(rows, rowvar=False).reshape(len(rows[0]), -1)
    return np.asarray(np.einsum("on,nm,om->o", kernel, covariance, kernel))
