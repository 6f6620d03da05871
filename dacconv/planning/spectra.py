"""The kernels of a model's layers as they are split, and their decompositions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dacconv.decompositions import METHODS, Decomposition, Factors
from dacconv.decompositions.formula import as_kernel
from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.base import Model
from dacconv.fusions.merged import MergedModel, ScaledKernel
from dacconv.graph.types import Choice, FloatArray, Layer
from dacconv.support.progress import Progress, silent

OWN, FOLDED, UNIT = "own", "folded", "unit"
KERNEL_SCALES = (OWN, FOLDED, UNIT)
"""In which scale of its output channels a kernel is split. A decomposition minimises the error of
the kernel that it is given, so the scale decides how much each output channel counts. The scale
goes back into one factor of the split, and the cost is the same.

- ``own``: as the kernel was trained; a BatchNorm that was merged into it scales the split. This
  is what plain DAC does to a network whose BatchNorm is left as it is.
- ``folded``: as the BatchNorm has scaled it.
- ``unit``: every output channel with norm 1, whatever scaled it.
"""


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How layers are split.

    With ``fuse`` everything that can be merged without loss is merged before. ``kernel_scale`` is
    one of ``KERNEL_SCALES``, ``form`` a form of DAC's depthwise convs; None is the default.
    """

    fuse: bool = True
    kernel_scale: str = OWN
    form: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Spectra:
    """The decompositions of a model's layers by each method, computed once, on demand."""

    model: Model | MergedModel
    layers: Sequence[Layer]
    kernel_scale: str = OWN
    progress: Progress = silent
    _decompositions: dict[tuple[str, str], Decomposition] = field(default_factory=dict)
    _kernel: dict[str, ScaledKernel] = field(default_factory=dict)

    def __call__(self, layer: str, method: str) -> Decomposition:
        """The decomposition of the layer of that name by a method."""
        key = (layer, method)
        if key not in self._decompositions:
            names = [each.name for each in self.layers]
            self.progress("decomposing kernels", names.index(layer), len(names))
            self._decompositions[key] = METHODS[method].decompose(self._grouped(layer))
        return self._decompositions[key]

    def kernel(self, name: str) -> ScaledKernel:
        """The kernel of the layer of that name, as it is split; the last one is kept."""
        if name not in self._kernel:
            self._kernel.clear()
            layer = next(layer for layer in self.layers if layer.name == name)
            self._kernel[name] = scaled_kernel(self.model, layer, self.kernel_scale)
        return self._kernel[name]

    def factors(self, choice: Choice) -> Factors:
        """The factors of a split, whose product has the scale of the layer's own kernel."""
        decomposition = self(choice.layer, choice.method)
        factors = decomposition.factors(self._grouped(choice.layer), choice.rank)
        scale = self.kernel(choice.layer).scale
        if (scale == 1).all():
            return factors
        carrier = METHODS[choice.method].formula.carrier
        term = METHODS[choice.method].formula.terms[carrier]
        shape = [1] * (1 + len(term))
        shape[0], shape[1 + term.index("o")] = len(factors[carrier]), -1
        scaled = factors[carrier] * scale.reshape(shape)
        return *factors[:carrier], scaled, *factors[carrier + 1 :]

    def _grouped(self, name: str) -> FloatArray:
        layer = next(layer for layer in self.layers if layer.name == name)
        return as_kernel(self.kernel(name).weight, layer.geometry.groups)


def scaled_kernel(model: Model | MergedModel, layer: Layer, kernel_scale: str) -> ScaledKernel:
    """The kernel as it is to be split, and the scale of its output channels that is put back.

    Raises:
        UnsupportedError: the kernel holds NaN or infinite values.
        UsageError: there is no such scale.
    """
    if kernel_scale not in KERNEL_SCALES:
        raise UsageError(
            f"'{kernel_scale}' is not one of {', '.join(KERNEL_SCALES)}", where="--kernel-scale"
        )
    weight = finite(model.conv(layer.sites[0]).weight, layer, model.path)
    ones = np.ones(weight.shape[0])
    if kernel_scale == UNIT:
        norms = np.linalg.norm(weight.astype(np.float64).reshape(len(weight), -1), axis=1)
        scale = np.where(norms > 0, norms, 1.0)
        return ScaledKernel(weight / scale.reshape(-1, *(1,) * (weight.ndim - 1)), scale)
    own = None
    if kernel_scale == OWN and isinstance(model, MergedModel):
        own = model.scaled_kernel(layer.sites[0])
    return own or ScaledKernel(weight, ones)


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
