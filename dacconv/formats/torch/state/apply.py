"""Rebuilding a converted state dict: ``net = dacconv.apply(Net(), "model.dac.pt")``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from dacconv.errors import FormatError, UsageError
from dacconv.formats.base import LoadOptions
from dacconv.formats.sniff import kind
from dacconv.formats.torch.convs import CONVS, from_spec
from dacconv.formats.torch.files.checkpoint import read_checkpoint
from dacconv.formats.torch.files.entries import best_prefix, prefixes
from dacconv.formats.torch.members import modules, named_modules, own_methods, parameters, submodule
from dacconv.formats.torch.module.blocks import rebuilt
from dacconv.formats.torch.module.names import held_outside
from dacconv.formats.torch.state.file import StateFile, open_state
from dacconv.formats.torch.state.model import fill
from dacconv.formats.torch.state.specs import differences, folded, layer_facts, same_ends

M = TypeVar("M", bound=nn.Module)
Replaced = tuple[nn.Module, str, nn.Module]
"""Owner, attribute and the layer that was there."""

_AS_BEFORE = "give the network as it was before the conversion"


def apply(module: M, path: str | Path, *, key: str | None = None) -> M:
    """Put a converted state dict into its network.

    The layers that were converted are replaced in ``module`` itself, which is returned; all
    weights are then loaded strictly. What takes whose place is in the file, or in the
    ``.plan.json`` beside it; without either it is read off the keys (``X.0.weight`` and
    ``X.1.weight`` in the place of ``X.weight``), and the stride, padding and dilation of the
    network's own conv go to the factors that have its kernel. If it fails, ``module`` is as
    it was before.

    Args:
        module: the network as it was before the conversion; its weights do not matter.
        path: the file that ``dacconv convert`` wrote, ``.pt`` or ``.safetensors``.
        key: the entry of a checkpoint, where the file holds several state dicts.

    Raises:
        FormatError: the file cannot be read, or holds no state dict.
        UsageError: it does not fit the network; names the entries that do not.
    """
    path = Path(path)
    if kind(path) not in ("torch", "safetensors"):
        raise FormatError("not a state dict", where=str(path), hint="load it as what it is")
    source = _open(path, key)
    undo: list[Replaced] = []
    try:
        for each in place(module, source):
            undo += each
        hint = _AS_BEFORE
        if source.record is None and not source.has_room:
            hint += "; the .plan.json that convert wrote beside the file must lie beside it"
        fill(module, source.state, str(path), type(module).__name__, hint)
    except Exception:
        for owner, name, old in reversed(undo):
            owner._modules[name] = old
        raise
    return module


def place(module: nn.Module, source: StateFile) -> Iterator[list[Replaced]]:
    """Put the converted layers of a state dict, still without its weights, into ``module``.

    Yields what undoes each replacement; nothing where the file was not converted.
    """
    where = str(source.checkpoint.path)
    record = source.record
    held = held_outside(module)
    if record:
        record = _renamed(record, _prefix_of_record(module, record["modules"], source.state))
    recorded = dict(_recorded(module, record, where) if record else ())
    for name, layer in recorded.items():
        _require_reachable(module, name, held, where)
        yield _replace(module, name, layer)
    prefix = best_prefix(source.state, _possible_keys(module))
    for name, layer in list(_derived(module, source.state, prefix, recorded, where)):
        _require_reachable(module, name, held, where)
        yield _replace(module, name, layer)


def _prefix_of_record(module: nn.Module, specs: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """What goes before the record's names in ``module``, such as ``model.``; mostly nothing.

    A file that was converted as the inner network of a wrapper fits the wrapper too, as the
    original does.
    """
    names = {name for name, _ in named_modules(module, duplicates=True)}
    outer = [name for name in specs if not any(name.startswith(f"{n}.") for n in specs)]
    for prefix in ("", *sorted(set(prefixes(state)), key=lambda each: (len(each), each))):
        if all(prefix + name in names for name in outer):
            return prefix
    return ""


def _renamed(record: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The record with a prefix before the names of its layers."""
    result = dict(record)
    for key in ("modules", "replaced"):
        if prefix and isinstance(record.get(key), Mapping):
            result[key] = {prefix + name: value for name, value in record[key].items()}
    return result


def _require_reachable(module: nn.Module, name: str, held: Mapping[str, str], where: str) -> None:
    """Raise UsageError where the network calls a layer by a reference that nothing replaces."""
    if name in held:
        raise UsageError(
            f"layer '{name}' of {type(module).__name__} is also held in '{held[name]}', outside "
            "the module tree, where a converted layer cannot take its place",
            where=where,
            hint="keep the layers in an nn.ModuleList, or convert with --skip " + name,
        )


def _open(path: Path, key: str | None) -> StateFile:
    checkpoint = read_checkpoint(path, trust_pickle=False)
    if key is None and isinstance(checkpoint.content, Mapping):
        entry = checkpoint.content.get("dacconv")
        if isinstance(entry, Mapping) and isinstance(entry.get("entry"), str):
            key = entry["entry"] or None
    return open_state(checkpoint, LoadOptions(key=key))


def _possible_keys(module: nn.Module) -> list[str]:
    """Keys of the network as it is, and those that its convs may have become."""
    convs = [name for name, m in named_modules(module) if isinstance(m, CONVS)]
    with own_methods(module):
        keys = list(module.state_dict())
    return [*keys, *(f"{name}.0.weight" for name in convs)]


def _recorded(
    module: nn.Module, record: Mapping[str, Any], where: str
) -> Iterator[tuple[str, nn.Module]]:
    """The layers that the record of the conversion describes."""
    try:
        specs = folded(record["modules"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise FormatError("its plan is damaged: layers do not fit", where=where) from error
    facts = record.get("replaced")
    for name in sorted(specs):
        try:
            old = submodule(module, name)
            new = rebuilt(specs[name], old)
        except AttributeError as error:
            raise UsageError(
                f"{type(module).__name__} has no layer '{name}'", where=where, hint=_AS_BEFORE
            ) from error
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FormatError(f"its plan for layer '{name}' is damaged", where=where) from error
        if isinstance(facts, Mapping):
            misfit = _other_layer(old, facts.get(name))
        else:
            misfit = None if _may_replace(module, new, old, specs) else _channels(old)
        if misfit:
            raise UsageError(
                f"layer '{name}' of {type(module).__name__} has {misfit}: "
                "the converted layer does not fit",
                where=where,
                hint=_AS_BEFORE,
            )
        yield name, new


def _other_layer(layer: nn.Module, recorded: object) -> str | None:
    """How ``layer`` differs from the one that the converted layer has replaced, if it does."""
    facts = layer_facts(layer)
    if facts is None or not isinstance(recorded, Mapping):
        return None
    return ", ".join(differences(facts, recorded)) or None


def _may_replace(
    module: nn.Module, new: nn.Module, old: nn.Module, specs: Mapping[str, Any]
) -> bool:
    """Whether ``new`` can take the place of ``old``, where the record does not say what did.

    A conv that other convs were merged into has the channels of the whole chain.
    """
    if not isinstance(old, _ConvNd) or same_ends(new, old):
        return True
    emptied = {n for n, spec in specs.items() if spec == {"type": "Identity"}}
    return any(n in emptied and isinstance(m, _ConvNd) for n, m in named_modules(module))


def _channels(conv: nn.Module) -> str:
    facts = layer_facts(conv) or {}
    into, out = facts["channels"]
    return f"{into} -> {out} channels, stride {'x'.join(map(str, facts['stride']))}"


def _derived(
    module: nn.Module,
    state: Mapping[str, Any],
    prefix: str,
    recorded: Mapping[str, nn.Module],
    where: str,
) -> Iterator[tuple[str, nn.Module]]:
    """The layers that the keys show: convs whose weights are ``X.0.weight``, ``X.1.weight``."""
    inside = tuple(f"{name}." for name in recorded)
    for name, conv in named_modules(module):
        key = f"{prefix}{name}." if name else prefix
        if type(conv) not in CONVS or name in recorded or name.startswith(inside):
            continue
        if f"{key}weight" in state:
            continue
        weights: list[torch.Tensor] = []
        while isinstance(weight := state.get(f"{key}{len(weights)}.weight"), torch.Tensor):
            weights.append(weight)
        if weights and isinstance(conv, _ConvNd):
            has_bias = [f"{key}{index}.bias" in state for index in range(len(weights))]
            yield name, _chain(name, conv, weights, has_bias, where)


def _chain(
    name: str, conv: _ConvNd, weights: list[torch.Tensor], has_bias: list[bool], where: str
) -> nn.Module:
    """The chain of convs with these weights that computes what ``conv`` does."""
    if conv.groups != 1:
        raise UsageError(
            f"layer '{name}' is a grouped conv, but was split as a plain one",
            where=where,
            hint="convert the original again, with --arch",
        )
    axes = range(len(conv.kernel_size))
    shapes = [tuple(w.shape[2:]) for w in weights]
    if any(w.ndim != len(axes) + 2 for w in weights):
        raise _misfit(name, conv, where)
    # per axis, the factor with the kernel of that axis; where it is 1, that of another axis
    owner = [
        max((shape[a], sum(shape), -i) for i, shape in enumerate(shapes))[2] * -1 for a in axes
    ]
    if tuple(shapes[owner[a]][a] for a in axes) != tuple(conv.kernel_size):
        raise _misfit(name, conv, where)
    specs, channels = [], conv.in_channels
    for index, weight in enumerate(weights):
        groups, rest = divmod(channels, int(weight.shape[1]) or channels + 1)
        if rest or not groups:
            raise _misfit(name, conv, where)
        mine = [owner[a] == index for a in axes]
        padding: Any = [0] * len(axes)
        if isinstance(conv.padding, str):
            padding = conv.padding if any(mine) else "valid"
        elif any(mine):
            padding = [int(p) if m else 0 for p, m in zip(conv.padding, mine, strict=True)]
        specs.append({
            "type": f"Conv{len(axes)}d", "in": channels, "out": int(weight.shape[0]),
            "kernel": list(shapes[index]), "groups": groups, "bias": has_bias[index],
            "stride": [s if m else 1 for s, m in zip(conv.stride, mine, strict=True)],
            "dilation": [d if m else 1 for d, m in zip(conv.dilation, mine, strict=True)],
            "padding": padding, "padding_mode": conv.padding_mode if any(mine) else "zeros",
        })  # fmt: skip
        channels = int(weight.shape[0])
    if channels != conv.out_channels:
        raise _misfit(name, conv, where)
    return from_spec({"type": "Sequential", "layers": specs})


def _misfit(name: str, conv: _ConvNd, where: str) -> UsageError:
    kernel = "x".join(map(str, conv.kernel_size))
    return UsageError(
        f"the weights in the place of layer '{name}' are not those of a split {kernel} conv, "
        f"{conv.in_channels} -> {conv.out_channels} channels",
        where=where,
        hint=_AS_BEFORE,
    )


def _replace(root: nn.Module, name: str, new: nn.Module) -> list[Replaced]:
    """Put ``new`` wherever the layer is registered; return what undoes it."""
    old = submodule(root, name)
    if old is root:
        raise UsageError("the network is this one layer; put it in an nn.Sequential first")
    like = next(parameters(old), None)
    new.train(old.training)
    if like is not None:
        new.to(device=like.device, dtype=like.dtype)
    for parameter in parameters(new):
        parameter.requires_grad_(like is None or like.requires_grad)
    places = [(o, n) for o in modules(root) for n, child in o._modules.items() if child is old]
    for owner, attribute in places:
        owner._modules[attribute] = new
    return [(owner, attribute, old) for owner, attribute in places]
