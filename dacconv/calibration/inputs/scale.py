"""How a model's input is scaled, as its first BatchNorm or the first conv's biases imply.

A BatchNorm after the first conv has stored the mean and the variance of what that conv made
of the training images. Natural images have much the same statistics everywhere, so the gain
and the offset that turn pixels into the model's input follow from them.

Without one (it may have been folded) a first conv that was made for 0..255 answers pixels in
0..1 with next to nothing beside its biases: 240 times less in open_nsfw. Networks made for 0..1
or for about -2..2 have biases of 0.4 to 2.3 times the response.
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

DROWNED = 16
"""From here on biases say that the first conv is made for larger pixels than 0..1."""
BYTES = 255.0


@dataclass(frozen=True, slots=True, eq=False)
class Affinity:
    """``gain * pixel + offset`` per channel, both ``(channels,)``; ``told`` says why.

    ``guessed``: nothing said how the input is scaled.
    """

    gain: NDArray[np.floating]
    offset: NDArray[np.floating]
    told: str
    guessed: bool = False

    def apply(self, images: FloatArray) -> FloatArray:
        """Images ``(batch, channels, *size)`` in 0..1 as the model's input."""
        shape = (-1, *(1,) * (images.ndim - 2))
        made = images * self.gain.reshape(shape) + self.offset.reshape(shape)
        return np.asarray(made, np.float32)


def implied_scale(model: Model, source: str, images: FloatArray, *, last: bool) -> Affinity | None:
    """The scale that fits the stored statistics of the BatchNorm after the first conv.

    None where there is no such BatchNorm, or where it does not determine the scale.
    """
    if last:
        return None
    graph = model.graph()
    first = next((n for n in graph.nodes if source in n.inputs), None)
    if first is None or first.op != "conv":
        return None
    norm = next((n for n in graph.nodes if first.output in n.inputs), None)
    stored = model.statistics(norm.name) if norm is not None and norm.op == "affine" else None
    if stored is None:
        return None
    return _fitted(model, first, stored, images)


def _fitted(
    model: Model,
    first: Node,
    stored: tuple[NDArray[np.float64], NDArray[np.float64]],
    images: FloatArray,
) -> Affinity | None:
    mean, variance = stored
    conv = model.conv(first.name)
    if conv.groups != 1 or conv.transposed:
        return None
    channels = conv.in_channels
    kernel = conv.weight.reshape(conv.out_channels, -1).astype(np.float64)
    bias = 0.0 if conv.bias is None else conv.bias.astype(np.float64)
    response = _response(conv, images)
    usable = (response > 1e-12) & (variance > 1e-12)
    if usable.sum() < channels + 1:
        return None
    gain = float(np.sqrt(np.median(variance[usable] / response[usable])))
    sums = kernel.reshape(len(kernel), channels, -1).sum(axis=2)
    wanted = mean - bias - gain * (sums @ images.mean(axis=(0, *range(2, images.ndim))))
    weights = 1 / np.sqrt(variance + 1e-12)
    left = sums * weights[:, None]
    ridge = 1e-3 * float((left**2).mean()) * np.eye(channels)
    middle_offset = -gain * images.mean(axis=(0, *range(2, images.ndim)))
    residual = (wanted - sums @ middle_offset) * weights
    offset = middle_offset + np.linalg.solve(left.T @ left + ridge * len(left), left.T @ residual)
    if not (np.isfinite(gain) and np.isfinite(offset).all()) or gain == 0:
        return None
    told = (
        f"the first BatchNorm implies an input of about {offset.mean():.3g} to "
        f"{offset.mean() + gain:.3g}"
    )
    return Affinity(np.full(channels, gain), offset, told)


def scale_of_biases(view: Model | MergedModel, images: FloatArray) -> Affinity | None:
    """0..255, or that about zero, where the biases of the first conv leave nothing else."""
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
    if size == 0 or not DROWNED * size < strength < math.inf:
        return None
    middle = BYTES * images.mean(axis=(0, *range(2, images.ndim)))
    sums = conv.weight.reshape(len(bias), conv.in_channels, -1).sum(axis=2)
    centred = float((bias**2).sum()) < float(((bias + sums @ middle) ** 2).sum())
    told = (
        f"the first layer's biases are {strength / size:.0f} times what it makes of pixels in "
        f"0..1: 0..255{' about zero' if centred else ''} was assumed"
    )
    return Affinity(np.full(len(middle), BYTES), -middle if centred else 0 * middle, told)


def _response(conv: Conv, images: FloatArray) -> NDArray[np.float64]:
    """The variance of each output of a conv without its bias, away from the border."""
    kernel = conv.weight.reshape(conv.out_channels, -1).astype(np.float64)
    inner = replace(conv, padding=tuple((0, 0) for _ in conv.padding), auto_pad=None)
    rows = np.concatenate([r for _, _, r in patches(inner, images[:32])])
    covariance = np.cov(rows, rowvar=False).reshape(len(rows[0]), -1)
    return np.asarray(np.einsum("on,nm,om->o", kernel, covariance, kernel))
