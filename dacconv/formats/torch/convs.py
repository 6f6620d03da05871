"""Between ``Conv`` values and plain ``torch.nn`` layers, both ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from dacconv.errors import UnsupportedError
from dacconv.graph.convs import swap_channels
from dacconv.graph.types import (
    Affine,
    Array,
    Branches,
    Conv,
    Geometry,
    Parallel,
    Repeat,
    Step,
)
from dacconv.nn import Concat, Sum

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    kind.__name__: kind for kind in (*CONVS, *TRANSPOSED, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
}

_HOLDERS: dict[str, Callable[..., nn.Module]] = {
    "Sequential": nn.Sequential,
    "Sum": Sum,
    "Concat": Concat,
}
INTERLEAVE_AXES = 2
"""With how many spatial axes an Upsample can repeat channels: it takes five axes at most."""


def to_numpy(tensor: torch.Tensor) -> Array:
    """The tensor's data without a copy where possible; bfloat16, unknown to numpy, as float32."""
    plain = tensor.detach().cpu()
    if plain.dtype == torch.bfloat16:
        plain = plain.float()
    return np.asarray(plain.resolve_conj().resolve_neg().numpy())


def weight_problem(weight: torch.Tensor) -> str | None:
    """Why a weight cannot be split, whatever it is used for; None where it can."""
    if weight.layout != torch.strided:
        return f"its weight is sparse ({str(weight.layout).removeprefix('torch.')})"
    if weight.device.type == "meta":
        return "its weight has no data (it is on the meta device)"
    if weight.dtype not in _FLOATS:
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}, not floating point"
    if weight.numel() == 0:
        return "it has no channels"
    return None


def from_numpy(array: Array, like: torch.Tensor) -> torch.Tensor:
    """A tensor of the dtype and device of ``like`` that owns its data."""
    tensor = torch.from_numpy(np.array(array, order="C", copy=True))
    return tensor.to(dtype=like.dtype, device=like.device)


def padding_of(module: _ConvNd) -> tuple[tuple[int, int], ...]:
    """``(begin, end)`` per axis; what torch's ``same`` adds to an odd total goes to the end."""
    if isinstance(module.padding, str):
        return string_padding(module.padding, module.kernel_size, module.dilation)
    return tuple((int(p), int(p)) for p in module.padding)


def string_padding(
    padding: str, kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """The numbers behind ``same`` (at stride 1, the only one that torch allows) and ``valid``."""
    if padding == "valid":
        return tuple((0, 0) for _ in kernel)
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple((t // 2, t - t // 2) for t in totals)


def read_conv(module: nn.Module) -> Conv:
    """The value of a conv, transposed conv or linear module."""
    if isinstance(module, nn.Linear):
        return linear_value(module.weight, module.bias)
    if not isinstance(module, _ConvNd):
        raise UnsupportedError(f"a {type(module).__name__} is not a conv")
    weight = to_numpy(module.weight)
    transposed = module.transposed
    return Conv(
        weight=swap_channels(weight, module.groups) if transposed else weight,
        bias=None if module.bias is None else to_numpy(module.bias),
        stride=tuple(module.stride),
        padding=padding_of(module),
        dilation=tuple(module.dilation),
        groups=module.groups,
        pad_mode=module.padding_mode,
        transposed=transposed,
        output_padding=tuple(module.output_padding) if transposed else (),
    )


def linear_value(weight: torch.Tensor, bias: torch.Tensor | None) -> Conv:
    """A linear layer as a conv without spatial axes."""
    return Conv(
        weight=to_numpy(weight),
        bias=None if bias is None else to_numpy(bias),
        stride=(),
        padding=(),
        dilation=(),
    )


def batchnorm_affine(
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    var: torch.Tensor,
    eps: float,
) -> Affine:
    """``y = scale x + shift`` of a BatchNorm at inference, in float64."""
    scale = 1 / np.sqrt(to_numpy(var).astype(np.float64) + eps)
    if weight is not None:
        scale = scale * to_numpy(weight).astype(np.float64)
    shift = -to_numpy(mean).astype(np.float64) * scale
    if bias is not None:
        shift = shift + to_numpy(bias).astype(np.float64)
    return Affine(scale, shift)


def read_affine(module: nn.Module) -> Affine:
    """The affine of a BatchNorm module that has running statistics."""
    if not isinstance(module, _BatchNorm) or module.running_mean is None:
        raise UnsupportedError(f"a {type(module).__name__} is not a fixed per-channel affine")
    return batchnorm_affine(
        module.weight, module.bias, module.running_mean, _present(module.running_var), module.eps
    )


def _sequence_of(value: Any) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _present(tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise UnsupportedError("a BatchNorm without running statistics is not an affine")
    return tensor


def module_geometry(
    module: nn.Module, source: torch.Tensor | None = None, result: torch.Tensor | None = None
) -> Geometry:
    """The geometry of a conv, transposed conv or linear module, sizes from its in- and output."""
    if isinstance(module, nn.Linear):
        return linear_geometry(module.weight, module.bias is not None, result)
    if not isinstance(module, _ConvNd):
        raise UnsupportedError(f"a {type(module).__name__} is not a conv")
    axes = len(module.kernel_size)
    return Geometry(
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        kernel=tuple(module.kernel_size),
        stride=tuple(module.stride),
        dilation=tuple(module.dilation),
        groups=module.groups,
        bias=module.bias is not None,
        input_size=None if source is None else tuple(source.shape[-axes:]),
        output_size=None if result is None else tuple(result.shape[-axes:]),
        batch=result.shape[0] if result is not None and result.ndim == axes + 2 else 1,
        itemsize=module.weight.element_size(),
        transposed=module.transposed,
    )


def linear_geometry(weight: torch.Tensor, bias: bool, result: torch.Tensor | None) -> Geometry:
    """A linear layer's geometry: ``batch`` counts how often its matrix is applied."""
    return Geometry(
        in_channels=weight.shape[1],
        out_channels=weight.shape[0],
        kernel=(),
        stride=(),
        dilation=(),
        groups=1,
        bias=bias,
        input_size=None if result is None else (),
        output_size=None if result is None else (),
        batch=1 if result is None else math.prod(result.shape[:-1]),
        itemsize=weight.element_size(),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Builder:
    """Makes layers like ``like``; arrays that are the same object become one Parameter."""

    parameters: dict[int, tuple[Array, nn.Parameter]] = field(default_factory=dict)

    def branches(self, branches: Branches, like: nn.Module) -> nn.Module:
        """A sum of chains as one module: the conv itself where it is a single layer."""
        chains = [self._sequence(chain, like) for chain in branches]
        module = chains[0] if len(chains) == 1 else Sum(*chains)
        return module.train(like.training)

    def _sequence(self, steps: Sequence[Step], like: nn.Module) -> nn.Module:
        layers: list[nn.Module] = []
        channels = 0
        for step, following in zip(steps, (*steps[1:], None), strict=True):
            if isinstance(step, Repeat):
                channels = following.in_channels if isinstance(following, Conv) else 0
                layers += [from_spec(spec) for spec in interleave_specs(step, channels)]
            elif isinstance(step, Parallel):
                parts = [self._sequence((conv,), like) for conv in step.convs]
                layers.append(Concat(*parts, axes=len(step.convs[0].kernel)))
            else:
                layers += self._layers(step, like)
        return layers[0] if len(layers) == 1 else nn.Sequential(*layers)

    def _layers(self, conv: Conv, like: nn.Module) -> list[nn.Module]:
        specs = conv_specs(conv, linear=isinstance(like, nn.Linear))
        layers = [from_spec(spec) for spec in specs]
        weight = like.get_parameter("weight")
        last = layers[-1]
        stored = swap_channels(conv.weight, conv.groups) if conv.transposed else conv.weight
        last.register_parameter("weight", self._parameter(conv.weight, stored, weight))
        if conv.bias is not None:
            last.register_parameter("bias", self._parameter(conv.bias, conv.bias, weight))
        return layers

    def _parameter(self, array: Array, stored: Array, like: torch.Tensor) -> nn.Parameter:
        if id(array) not in self.parameters:
            tensor = nn.Parameter(from_numpy(stored, like), requires_grad=like.requires_grad)
            self.parameters[id(array)] = (array, tensor)  # keeps the array, and so its id, alive
        return self.parameters[id(array)][1]


Spec: TypeAlias = Mapping[str, Any]
"""A layer without weights, as JSON: ``{"type": "Conv2d", ...}``; ``from_spec`` builds it."""


def conv_specs(conv: Conv, *, linear: bool = False) -> list[Spec]:
    """The plain layers that compute ``conv``: one, or a ZeroPad and one where it is lopsided."""
    if linear or not conv.kernel:
        shape = {"in": conv.in_channels, "out": conv.out_channels}
        return [{"type": "Linear", **shape, "bias": conv.bias is not None}]
    axes = len(conv.kernel)
    pads: Any = [begin for begin, _ in conv.padding]
    before: list[Spec] = []
    if conv.auto_pad:
        raise UnsupportedError("padding that depends on the input size has no torch.nn layer")
    if any(begin != end for begin, end in conv.padding):
        same = string_padding("same", conv.kernel, conv.dilation)
        if conv.padding == same and set(conv.stride) == {1} and not conv.transposed:
            pads = "same"
        elif conv.pad_mode != "zeros" or conv.transposed:
            raise UnsupportedError(f"lopsided {conv.pad_mode} padding has no torch.nn layer")
        else:
            flat = [side for pair in reversed(conv.padding) for side in pair]
            before = [{"type": f"ZeroPad{axes}d", "padding": flat}]
            pads = [0] * axes
    unpadded = all(pair == (0, 0) for pair in conv.padding)
    spec: dict[str, Any] = {
        "type": f"{'ConvTranspose' if conv.transposed else 'Conv'}{axes}d",
        "in": conv.in_channels,
        "out": conv.out_channels,
        "kernel": list(conv.kernel),
        "stride": list(conv.stride),
        "padding": pads,
        "dilation": list(conv.dilation),
        "groups": conv.groups,
        "bias": conv.bias is not None,
        "padding_mode": "zeros" if unpadded else conv.pad_mode,
    }
    if conv.transposed:
        spec["output_padding"] = list(conv.output_padding)
    return [*before, spec]


def interleave_specs(step: Repeat, channels: int) -> list[Spec]:
    """Plain layers that repeat every channel in a row, to ``channels`` channels in all.

    An Upsample along the channels, which for that time are a spatial axis.

    Raises:
        UnsupportedError: the whole input is to be repeated, or there are too many axes.
    """
    if not step.interleaved or step.axes > INTERLEAVE_AXES:
        raise UnsupportedError(f"no torch.nn layer repeats the channels of a {step.axes}-D conv")
    return [
        {"type": "Unflatten", "dim": 1, "sizes": [1, channels // step.copies]},
        {"type": "Upsample", "scale": [step.copies, *(1 for _ in range(step.axes))]},
        {"type": "Flatten", "dims": [1, 2]},
    ]


def describe(module: nn.Module) -> Spec:
    """The spec of a module that this file has made."""
    kind = type(module).__name__
    if type(module) in (nn.Sequential, Sum, Concat):
        more = {"axes": module.axes} if isinstance(module, Concat) else {}
        return {"type": kind, **more, "layers": [describe(layer) for layer in module.children()]}
    if isinstance(module, nn.Unflatten):
        return {"type": kind, "dim": module.dim, "sizes": list(module.unflattened_size)}
    if isinstance(module, nn.Upsample):
        return {"type": kind, "scale": [int(s) for s in _sequence_of(module.scale_factor)]}
    if isinstance(module, nn.Flatten):
        return {"type": kind, "dims": [module.start_dim, module.end_dim]}
    if type(module) is nn.Identity:
        return {"type": kind}
    if isinstance(module, (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)):
        return {"type": kind, "padding": list(module.padding)}
    if isinstance(module, _ConvNd):
        value = conv_specs(read_conv(module))[-1]
        pads = module.padding if isinstance(module.padding, str) else list(module.padding)
        return {**value, "padding": pads, "padding_mode": module.padding_mode}
    if isinstance(module, nn.Linear):
        return conv_specs(read_conv(module), linear=True)[0]
    raise UnsupportedError(f"a {kind} has no description")


def from_spec(spec: Spec) -> nn.Module:
    """Build the layer of a spec, weights uninitialised in meaning; KeyError on a bad spec."""
    kind = spec["type"]
    if kind in _HOLDERS:
        more = {"axes": spec["axes"]} if "axes" in spec else {}
        return _HOLDERS[kind](*(from_spec(layer) for layer in spec["layers"]), **more)
    if kind == "Identity":
        return nn.Identity()
    if kind == "Unflatten":
        return nn.Unflatten(spec["dim"], tuple(spec["sizes"]))
    if kind == "Upsample":
        return nn.Upsample(scale_factor=tuple(float(s) for s in spec["scale"]))
    if kind == "Flatten":
        return nn.Flatten(*spec["dims"])
    if kind in ("ZeroPad1d", "ZeroPad2d", "ZeroPad3d"):
        return _BUILDERS[kind](tuple(spec["padding"]))
    with torch.random.fork_rng(devices=[]):  # initialising must not move the user's seed
        if kind == "Linear":
            return nn.Linear(spec["in"], spec["out"], bias=spec["bias"])
        pads = spec["padding"]
        more = {"output_padding": tuple(spec["output_padding"])} if "output_padding" in spec else {}
        return _BUILDERS[kind](
            spec["in"],
            spec["out"],
            tuple(spec["kernel"]),
            stride=tuple(spec["stride"]),
            padding=pads if isinstance(pads, str) else tuple(pads),
            dilation=tuple(spec["dilation"]),
            groups=spec["groups"],
            bias=spec["bias"],
            padding_mode=spec["padding_mode"],
            **more,
        )
