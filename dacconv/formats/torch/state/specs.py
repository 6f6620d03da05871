"""What the record of a converted file says of replaced layers: their specs, and what was there.

A spec describes the layer that takes another's place; see ``dacconv.formats.torch.convs.describe``.
The facts of the layer that was there tell a network that fits the file from one that does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from torch import nn
from torch.nn.modules.conv import _ConvNd

from dacconv.formats.torch.convs import Spec, padding_of
from dacconv.nn import Concat, Sum

Facts: TypeAlias = Mapping[str, Any]
"""The geometry of a layer as JSON."""

_LABELS = {"transposed": "transposed", "padding_mode": "padding mode"}


def layer_facts(module: nn.Module) -> Facts | None:
    """The geometry of a conv, transposed conv or linear layer; None for other modules."""
    if isinstance(module, nn.Linear):
        return {"channels": [module.in_features, module.out_features]}
    if not isinstance(module, _ConvNd):
        return None
    return {
        "channels": [module.in_channels, module.out_channels],
        "kernel": list(module.kernel_size),
        "stride": list(module.stride),
        "padding": [list(pair) for pair in padding_of(module)],
        "dilation": list(module.dilation),
        "groups": module.groups,
        "transposed": module.transposed,
        "padding_mode": module.padding_mode,
    }


def differences(facts: Facts, recorded: Facts) -> Iterator[str]:
    """How a layer differs from the recorded one: ``stride 1x1, not 2x2``."""
    for name, value in facts.items():
        if name in recorded and recorded[name] != value:
            label = _LABELS.get(name, name)
            mine, other = _text(name, value), _text(name, recorded[name])
            if name == "channels":
                yield f"{mine} channels, not {other}"
            else:
                yield f"{label} {mine}, not {other}"


def _text(name: str, value: Any) -> str:
    if not isinstance(value, list):
        return str(value)[:40]
    if name == "channels":
        return " -> ".join(map(str, value))[:40]
    sides = [side[0] if isinstance(side, list) and len(set(map(str, side))) == 1 else side
             for side in value]  # fmt: skip
    return "x".join(map(str, sides))[:40]


def same_ends(new: nn.Module, old: _ConvNd) -> bool:
    """Whether a layer has the channels and the stride of ``old``, as far as they can be seen.

    For the records of earlier versions, which do not say what a layer has replaced.
    """
    ends = _ends(new)
    return ends is None or ends == (old.in_channels, old.out_channels, tuple(old.stride))


def _ends(layer: nn.Module) -> tuple[int, int, tuple[int, ...]] | None:
    """Channels in and out, and the whole stride, of a conv or of convs put together."""
    if isinstance(layer, _ConvNd):
        return layer.in_channels, layer.out_channels, tuple(layer.stride)
    parts = [ends for child in layer.children() if (ends := _ends(child)) is not None]
    if not parts:
        return None
    if isinstance(layer, (Sum, Concat)):
        outs = [out for _, out, _ in parts]
        return parts[0][0], sum(outs) if isinstance(layer, Concat) else outs[0], parts[0][2]
    scales = [child.scale_factor for child in layer.children() if type(child) is nn.Upsample]
    repeats = [scale[0] for scale in scales if isinstance(scale, tuple)]
    strides = zip(*(stride for _, _, stride in parts), strict=True)
    into = parts[0][0] // int(math.prod(repeats))
    return into, parts[-1][1], tuple(math.prod(axis) for axis in strides)


def folded(specs: Mapping[str, Spec]) -> dict[str, Spec]:
    """The same replacements, where the spec of a layer inside a replaced one is part of that.

    A file that is converted again may change a layer that exists only since the first time:
    ``{"a": Sequential, "a.0": Conv2d}`` becomes ``{"a": Sequential of Conv2d and the rest}``.

    Raises:
        KeyError, IndexError, ValueError, TypeError: a spec has no such layer inside.
    """
    result: dict[str, Spec] = {}
    for name in sorted(specs):  # an outer layer comes before those inside it
        holder = next((outer for outer in result if name.startswith(f"{outer}.")), None)
        if holder is None:
            result[name] = specs[name]
        else:
            inner = name[len(holder) + 1 :]
            result[holder] = embedded(result[holder], inner, specs[name])
    return result


def embedded(spec: Spec, path: str, new: Spec) -> Spec:
    """``spec`` with the layer at ``path`` inside it replaced by ``new``; ``""`` is all of it."""
    if not path:
        return over(new, spec)
    if spec["type"] == "Kept":
        inside: Mapping[str, Spec] = spec["inside"]
        holder = next((n for n in inside if not n or n == path or path.startswith(f"{n}.")), None)
        if holder is None:
            return {**spec, "inside": {**inside, path: new}}
        rest = path[len(holder) :].removeprefix(".")
        return {**spec, "inside": {**inside, holder: embedded(inside[holder], rest, new)}}
    index, _, rest = path.partition(".")
    layers = list(spec["layers"])
    layers[int(index)] = embedded(layers[int(index)], rest, new)
    return {**spec, "layers": layers}


def over(new: Spec, old: Spec) -> Spec:
    """``new``, whose kept parts are named as in what ``old`` builds, named as in the original."""
    if new["type"] == "Kept":
        part = part_of(old, new["name"])
        for path, spec in sorted(new["inside"].items()):
            part = embedded(part, path, spec)
        return part
    if "layers" in new:
        return {**new, "layers": [over(layer, old) for layer in new["layers"]]}
    return new


def part_of(spec: Spec, path: str) -> Spec:
    """The spec of the layer at ``path`` inside what ``spec`` builds."""
    if not path:
        return spec
    if spec["type"] == "Kept":
        inside: Mapping[str, Spec] = spec["inside"]
        holder = next((n for n in inside if not n or n == path or path.startswith(f"{n}.")), None)
        if holder is not None:
            return part_of(inside[holder], path[len(holder) :].removeprefix("."))
        below = {n[len(path) + 1 :]: s for n, s in inside.items() if n.startswith(f"{path}.")}
        return {"type": "Kept", "name": f"{spec['name']}.{path}", "inside": below}
    index, _, rest = path.partition(".")
    return part_of(spec["layers"][int(index)], rest)
