"""The kernels of a model's layers as they are split, and their singular values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dacconv.decompositions import METHODS
from dacconv.decompositions.svd import ChannelSVD
from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.base import Model
from dacconv.fusions.merged import MergedModel, OwnScale
from dacconv.graph.types import FloatArray, Layer
from dacconv.support.progress import Progress, silent

OWN, FOLDED, UNIT = "own", "folded", "unit"
KERNEL_SCALES = (OWN, FOLDED, UNIT)
"""In which scale of its output channels a kernel is split. The SVD minimises the error of what
it is given, so the scale decides how much each output channel counts; it goes back into the last
conv of the split, and the cost is the same.

- ``own``: as the kernel was trained; a BatchNorm that was merged into it scales the last conv.
  What plain DAC does to a network whose BatchNorm is left as it is.
- ``folded``: as the BatchNorm has scaled it.
- ``unit``: every output channel with norm 1, whatever scaled it.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Spectra:
    """The singular values of a model's layers, computed when asked for, once."""

    model: Model | MergedModel
    layers: Sequence[Layer]
    kernel_scale: str = OWN
    progress: Progress = silent
    _known: dict[str, ChannelSVD] = field(default_factory=dict)
    _kernel: dict[str, OwnScale] = field(default_factory=dict)

    def __call__(self, name: str) -> ChannelSVD:
        """The decomposition of the layer of that name."""
        if name not in self._known:
            names = [layer.name for layer in self.layers]
            self.progress("measuring kernels", names.index(name), len(names))
            self._known[name] = METHODS["dac"].decompose(self.kernel(name).weight)
        return self._known[name]

    def kernel(self, name: str) -> OwnScale:
        """The kernel of the layer of that name, as it is split; the last one is kept."""
        if name not in self._kernel:
            self._kernel.clear()
            layer = next(layer for layer in self.layers if layer.name == name)
            self._kernel[name] = scaled_kernel(self.model, layer, self.kernel_scale)
        return self._kernel[name]


def scaled_kernel(model: Model | MergedModel, layer: Layer, kernel_scale: str) -> OwnScale:
    """The kernel as it is to be split, and what its output channels are scaled with after."""
    if kernel_scale not in KERNEL_SCALES:
        raise UsageError(
            f"'{kernel_scale}' is not one of {', '.join(KERNEL_SCALES)}", where="--kernel-scale"
        )
    weight = finite(model.conv(layer.sites[0]).weight, layer, model.path)
    ones = np.ones(weight.shape[0])
    if kernel_scale == UNIT:
        norms = np.linalg.norm(weight.astype(np.float64).reshape(len(weight), -1), axis=1)
        scale = np.where(norms > 0, norms, 1.0)
        return OwnScale(weight / rows_of(scale, weight), scale)
    own = None
    if kernel_scale == OWN and isinstance(model, MergedModel):
        own = model.own_scale(layer.sites[0])
    return own or OwnScale(weight, ones)


def finite(weight: FloatArray, layer: Layer, path: Path) -> FloatArray:
    """The kernel; UnsupportedError where it holds NaN or infinite values."""
    bad = weight.size - int(np.isfinite(weight).sum())
    if bad:
        raise UnsupportedError(
            f"layer {layer.name}: {bad} of {weight.size} weights are NaN or infinite",
            where=str(path),
            hint=f"the checkpoint is broken there; --skip '{layer.name}' leaves the layer alone",
        )
    return weight


def rows_of(scale: FloatArray, weight: FloatArray) -> FloatArray:
    """One number per output channel, ``(out,)``, in a shape that multiplies a kernel."""
    return scale.reshape(-1, *(1,) * (weight.ndim - 1))
