"""A state dict whose keys and shapes are those of a known network needs no ``--arch``.

Keys and shapes are compared with networks of ``dacconv.zoo`` that are built on the meta device:
they cost no memory, and no weight is read. What a file does not show, such as strides, is taken
from the network, and the report says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import nn

from dacconv import zoo
from dacconv.formats.base import LoadOptions
from dacconv.formats.torch.files.entries import best_prefix
from dacconv.formats.torch.state.apply import place
from dacconv.formats.torch.state.file import StateFile
from dacconv.zoo.known import NETWORKS, Network, Shapes

ZOO = "dacconv.zoo:"
_COUNTER = "num_batches_tracked"
_LARGEST = 1 << 20
"""No argument that is read from a record may be larger."""


@dataclass(frozen=True, slots=True)
class Recognition:
    """What was recognised: the options that open it, or None and the reason in ``facts``."""

    options: LoadOptions | None
    facts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Match:
    """A network that has the keys of the file; ``misfits`` are the shapes that differ."""

    network: Network
    arguments: Mapping[str, Any] = field(default_factory=dict)
    misfits: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The options of the command line that name this network."""
        return arch_words(ZOO + self.network.name, self.arguments)


def recognise(source: StateFile, options: LoadOptions) -> Recognition:
    """The network that a state dict belongs to, where exactly one known network fits.

    A converted file is opened as the network that its record names.
    """
    recorded = _recorded(source)
    if recorded is not None:
        network, arguments = recorded
        facts = f"opened as {arch_words(ZOO + network.name, arguments)}, as its record says"
        return Recognition(_opened(network, arguments, source, options), (facts,))
    for prefix, shapes in _candidates(source.state):
        matches = list(_matches(shapes))
        fitting = [match for match in matches if not match.misfits]
        if len(fitting) > 1:
            names = " or ".join(match.words for match in fitting)
            return Recognition(
                None,
                (f"its keys and shapes are those of several networks, which compute different "
                 f"things: name the right one with {names}",),
            )  # fmt: skip
        if fitting:
            return _recognised(fitting[0], prefix, source, options)
        if matches:
            match = matches[0]
            return Recognition(
                None,
                (f"its keys are those of {ZOO}{match.network.name}, but {match.misfits[0]}: name "
                 "your own network with --arch",),
            )  # fmt: skip
    return Recognition(None)


def arch_words(arch: str, arguments: Mapping[str, Any]) -> str:
    """``--arch dacconv.zoo:resnet18 --arch-arg classes=10``."""
    words = [f"--arch {arch}"]
    for name, value in arguments.items():
        text = str(value).lower() if isinstance(value, bool) else f"{value:g}"
        words.append(f"--arch-arg {name}={text}")
    return " ".join(words)


def _recognised(match: _Match, prefix: str, source: StateFile, options: LoadOptions) -> Recognition:
    network, arguments = match.network, match.arguments
    opened = _opened(network, arguments, source, options)
    tensors = sum(isinstance(t, torch.Tensor) for t in source.state.values())
    where = f" under '{prefix}'" if prefix else ""
    size = "x".join(map(str, next(iter(opened.input_shapes.values()))))
    given = "" if options.input_shapes else f", and its input to be {size} (--input-shape)"
    facts = [
        f"recognised as {match.words}: it has the same {tensors} tensors{where}, by name and shape",
        f"strides, paddings and activations are not in the file and are taken from that "
        f"network{given}; --arch none takes the weights alone",
    ]
    if (other := _in_torchvision(match)) is not None:
        facts.append(f"torchvision has the same network: {other}")
    if network.caveat:
        facts.append(network.caveat)
    return Recognition(opened, tuple(facts))


def _in_torchvision(match: _Match) -> str | None:
    """The options that name the network in torchvision, where that is installed and has it."""
    network, arguments = match.network, match.arguments
    plain = arguments.keys() <= {"classes"}
    if not network.torchvision or not plain or find_spec("torchvision") is None:
        return None
    more = {"num_classes": arguments["classes"]} if arguments else {}
    return arch_words(f"torchvision.models:{network.torchvision}", more)


def _opened(
    network: Network, arguments: Mapping[str, Any], source: StateFile, options: LoadOptions
) -> LoadOptions:
    """The options with the network's name, and the size of its images where none is given."""
    channels = arguments.get("channels", 1 if network.name == "dncnn" else 3)
    shapes = options.input_shapes or {"": (1, channels, network.size, network.size)}
    return replace(options, arch=ZOO + network.name, arch_args=dict(arguments), input_shapes=shapes)


def _candidates(state: Mapping[str, Any]) -> Iterator[tuple[str, Shapes]]:
    """The shapes of the tensors by key, without each of the prefixes that all keys share."""
    shapes = {key: tuple(t.shape) for key, t in state.items() if isinstance(t, torch.Tensor)}
    shapes = {key: shape for key, shape in shapes.items() if not key.endswith(_COUNTER)}
    prefix = ""
    while shapes:
        yield prefix, shapes
        heads = {key.partition(".")[0] for key in shapes}
        if len(heads) > 1 or not all("." in key for key in shapes):
            return
        prefix += f"{heads.pop()}."
        shapes = {key.partition(".")[2]: shape for key, shape in shapes.items()}


def _matches(shapes: Shapes) -> Iterator[_Match]:
    """The networks that have these keys, with the first shapes that differ."""
    for network in NETWORKS:
        near: _Match | None = None
        for arguments in network.arguments(shapes):
            own = _shapes_of(network.name, arguments)
            if own is None or own.keys() != shapes.keys():
                continue
            misfits = tuple(
                f"{key} is {_text(shapes[key])}, not {_text(shape)}"
                for key, shape in own.items()
                if shapes[key] != shape
            )
            needed = _without_defaults(network.name, arguments)
            if not misfits:
                yield _Match(network, needed)
            near = near or _Match(network, needed, misfits)
        if near is not None and near.misfits:
            yield near


def _without_defaults(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that have to be given to the factory of a network."""
    defaults = signature(getattr(zoo, name)).parameters
    return {key: value for key, value in arguments.items() if defaults[key].default != value}


def _shapes_of(name: str, arguments: Mapping[str, Any]) -> Shapes | None:
    """The shapes of a network's state dict, without memory for it; None where it cannot be."""
    try:
        with torch.device("meta"):
            state = zoo.build(name, **arguments).state_dict()
    except (RuntimeError, ValueError, KeyError, ZeroDivisionError):
        return None
    return {k: tuple(t.shape) for k, t in state.items() if not k.endswith(_COUNTER)}


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _recorded(source: StateFile) -> tuple[Network, dict[str, Any]] | None:
    """The network that the record of a conversion names, where it fits the file.

    Only networks of the zoo are taken: opening a file never runs code that the file chooses.
    """
    record = source.record or {}
    held = record.get("arch")
    if not isinstance(held, Mapping) or not isinstance(held.get("arguments"), Mapping):
        return None
    network = next((n for n in NETWORKS if n.name == held.get("name")), None)
    arguments = {str(name): value for name, value in held["arguments"].items()}
    numbers = all(isinstance(v, (bool, int, float)) for v in arguments.values())
    if network is None or not numbers or any(not 0 <= v < _LARGEST for v in arguments.values()):
        return None
    if arguments.get("depth", 0) > len(source.state):
        return None
    return (network, arguments) if _fits(network.name, arguments, source) else None


def _fits(name: str, arguments: Mapping[str, Any], source: StateFile) -> bool:
    """Whether the network with the converted layers in their places has the file's shapes."""
    try:
        with torch.device("meta"):
            module = zoo.build(name, **arguments)
            for _ in place(module, source):
                pass
    except Exception:  # arguments, or a plan, that somebody made up
        return False
    return _same_shapes(module, source.state)


def _same_shapes(module: nn.Module, state: Mapping[str, Any]) -> bool:
    own = module.state_dict()
    prefix = best_prefix(state, own)
    held = {key.removeprefix(prefix): value for key, value in state.items()}
    return all(
        key in held and tuple(held[key].shape) == tuple(value.shape)
        for key, value in own.items()
        if not key.endswith(_COUNTER)
    )
