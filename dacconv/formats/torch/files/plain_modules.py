"""Pickled modules of torch.nn classes only, read without running what the pickle names.

The pickle is read by torch's own weights-only unpickler, in which the name of every class of the
list below stands for a record of ours that only keeps its state: no code of ``torch.nn`` runs, and
every other name is refused. The modules are then built from the records. Each state must be
what such a module has: parameters and buffers of the known names, submodules in containers,
attributes that the class declares with plain values, and no hooks. So nothing in a file can
replace a method or be called.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from torch import nn

NAMES = {
    "activation": "ReLU ReLU6 LeakyReLU PReLU RReLU ELU SELU CELU GELU GLU SiLU Mish Hardswish "
    "Hardsigmoid Hardtanh Hardshrink Softshrink Tanhshrink Sigmoid LogSigmoid Tanh Softplus "
    "Softsign Softmax Softmax2d LogSoftmax Threshold",
    "batchnorm": "BatchNorm1d BatchNorm2d BatchNorm3d",
    "channelshuffle": "ChannelShuffle",
    "container": "Sequential ModuleList ModuleDict",
    "conv": "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d",
    "dropout": "Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout",
    "flatten": "Flatten Unflatten",
    "instancenorm": "InstanceNorm1d InstanceNorm2d InstanceNorm3d",
    "linear": "Identity Linear",
    "normalization": "GroupNorm LayerNorm LocalResponseNorm RMSNorm",
    "padding": "ConstantPad1d ConstantPad2d ConstantPad3d ReflectionPad1d ReflectionPad2d "
    "ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d ZeroPad1d ZeroPad2d "
    "ZeroPad3d CircularPad1d CircularPad2d CircularPad3d",
    "pixelshuffle": "PixelShuffle PixelUnshuffle",
    "pooling": "AvgPool1d AvgPool2d AvgPool3d MaxPool1d MaxPool2d MaxPool3d AdaptiveAvgPool1d "
    "AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d "
    "LPPool1d LPPool2d",
    "upsampling": "Upsample UpsamplingNearest2d UpsamplingBilinear2d",
}
CLASSES: dict[str, type[nn.Module]] = {
    f"torch.nn.modules.{home}.{name}": getattr(nn, name)
    for home, names in NAMES.items()
    for name in names.split()
}
"""The classes that are read, by the names that a pickle has for them."""

SETS = ("__builtin__.set", "builtins.set")
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
PARAMETERS = {"weight", "bias"}
BUFFERS = {"running_mean", "running_var", "num_batches_tracked"}
EMPTY = {
    "_non_persistent_buffers_set", "_backward_pre_hooks", "_backward_hooks", "_forward_hooks",
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
}  # fmt: skip
"""Entries of a state that must hold nothing: hooks would be called."""
DEEPEST = 100
"""How deep modules and containers may be nested."""


class NotPlainError(Exception):
    """A state that is more than a torch.nn module has; the text says what, in a few words."""


class ModuleState:
    """What a pickle says of one module: a class of the list, and its state. It does nothing."""

    path: ClassVar[str] = ""
    state: Any = None

    def __new__(cls) -> ModuleState:
        """Take no arguments, unlike the classes that it stands for."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        if self.state is not None:
            raise NotPlainError(f"two states of one {self.path}")
        self.state = state


STATES = [
    (type("State", (ModuleState,), {"path": path, "__module__": __name__}), path)
    for path in CLASSES
]


def is_plain(names: tuple[str, ...]) -> bool:
    """Whether a pickle that names these globals may be one of torch.nn modules only."""
    return bool(names) and all(name in CLASSES or name in SETS for name in names)


def read_plain(path: Path, *, mapped: bool) -> Any:
    """The content of a checkpoint whose modules are of torch.nn only, with the modules built.

    Raises:
        NotPlainError: a module has more in its state than its class does.
        Exception: whatever torch raises for a damaged file.
    """
    with torch.serialization.safe_globals(list(STATES)):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    return _Builder().build(content, 0)


class _Builder:
    """Builds modules from their states; what is shared in the pickle stays shared."""

    def __init__(self) -> None:
        self._built: dict[int, Any] = {}

    def build(self, value: Any, depth: int) -> Any:
        """The value with its modules built, in fresh containers."""
        if depth > DEEPEST:
            raise NotPlainError("modules are nested too deep, or hold themselves")
        if isinstance(value, nn.Module):
            raise NotPlainError("a module that was not read as data")
        if isinstance(value, ModuleState):
            if id(value) not in self._built:
                self._built[id(value)] = self._module(value, depth)
            return self._built[id(value)]
        if type(value) in (dict, OrderedDict):
            items = [(key, self.build(item, depth + 1)) for key, item in dict.items(value)]
            if any(isinstance(key, ModuleState) for key, _ in items):
                raise NotPlainError("a module as a key")
            return type(value)(items)
        if type(value) in (list, tuple):
            return type(value)(self.build(item, depth + 1) for item in value)
        if isinstance(value, (set, dict)) and any(isinstance(item, ModuleState) for item in value):
            raise NotPlainError("a module in a set")
        return value

    def _module(self, record: ModuleState, depth: int) -> nn.Module:
        """A module with the state of a record, checked entry by entry."""
        kind = CLASSES[record.path]
        state = _mapping(record.state, kind, "its state")
        module = kind.__new__(kind)
        nn.Module.__init__(module)
        for name, value in state.items():
            if name == "_parameters":
                module._parameters.update(self._tensors(kind, name, value, PARAMETERS))
            elif name == "_buffers":
                module._buffers.update(self._tensors(kind, name, value, BUFFERS))
            elif name == "_modules":
                module._modules.update(self._modules(kind, value, depth))
            elif name in EMPTY:
                if type(value) not in (dict, OrderedDict, set) or len(value):
                    _refuse(kind, f"{name} with content")
            elif name == "_is_full_backward_hook":
                if value not in (None, False, True):
                    _refuse(kind, name)
            else:
                vars(module)[name] = _attribute(kind, name, value)
        for name in {*module._parameters, *module._buffers, *module._modules} & set(state):
            _refuse(kind, f"{name} twice")
        untyped: Any = module
        untyped.__setstate__(dict(vars(module)))  # adds what later versions of torch need
        for name in getattr(kind, "__constants__", ()):
            if not hasattr(module, name):
                _refuse(kind, f"no {name}")
        return module

    def _tensors(
        self, kind: type[nn.Module], where: str, value: Any, names: set[str]
    ) -> Iterator[tuple[str, Any]]:
        """Parameters or buffers: new ones on the data of those in the file."""
        for name, tensor in _mapping(value, kind, where).items():
            if name not in names:
                _refuse(kind, f"{where} of the name {name}")
            if tensor is None:
                yield name, None
                continue
            expected = nn.Parameter if where == "_parameters" else torch.Tensor
            if type(tensor) is not expected or tensor.layout != torch.strided or tensor.is_meta:
                _refuse(kind, f"{name}, which is no plain tensor")
            if id(tensor) not in self._built:
                data = tensor.detach()
                self._built[id(tensor)] = (
                    nn.Parameter(data, tensor.requires_grad) if expected is nn.Parameter else data
                )
            yield name, self._built[id(tensor)]

    def _modules(
        self, kind: type[nn.Module], value: Any, depth: int
    ) -> Iterator[tuple[str, nn.Module | None]]:
        """The submodules of a container."""
        for name, item in _mapping(value, kind, "_modules").items():
            if kind not in CONTAINERS or not name or "." in name or hasattr(kind, name):
                _refuse(kind, f"a submodule of the name {name}")
            if item is not None and not isinstance(item, ModuleState):
                _refuse(kind, f"{name}, which is no module")
            yield name, None if item is None else self.build(item, depth + 1)


def _attribute(kind: type[nn.Module], name: str, value: Any) -> Any:
    """A plain value that the class declares: not the place of a method or of torch's own."""
    if name == "training" and type(value) is bool:
        return value
    if name not in _declared(kind) or hasattr(kind, name):
        _refuse(kind, f"the attribute {name}")
    if not _is_plain_value(value, 3):
        _refuse(kind, f"{name}, which is no plain value")
    return list(value) if type(value) is list else value


def _declared(kind: type[nn.Module]) -> set[str]:
    """The attributes that a class says it has, besides those of every module."""
    bases = [base for base in kind.__mro__ if issubclass(base, nn.Module) and base is not nn.Module]
    names = {name for base in bases for name in inspect.get_annotations(base)}
    names |= {name for base in bases for name in vars(base).get("__constants__", ())}
    names |= {"init"} if kind is nn.PReLU else set()
    return {name for name in names if not name.startswith("__")} - PARAMETERS


def _is_plain_value(value: Any, depth: int) -> bool:
    if type(value) in (tuple, list, torch.Size):
        return depth > 0 and all(_is_plain_value(item, depth - 1) for item in value)
    return value is None or type(value) in (bool, int, float, str, torch.dtype)


def _mapping(value: Any, kind: type[nn.Module], where: str) -> Mapping[str, Any]:
    """A fresh dict with the items of a dict whose keys are strings."""
    if type(value) not in (dict, OrderedDict):
        _refuse(kind, f"{where}, which is no dict")
    items = dict(dict.items(value))
    if not all(type(key) is str for key in items):
        _refuse(kind, f"{where} with a name that is no text")
    return items


def _refuse(kind: type[nn.Module], what: str) -> NoReturn:
    raise NotPlainError(f"{kind.__name__} has {what}")
