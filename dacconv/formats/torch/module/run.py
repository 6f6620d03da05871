"""Running a torch module on named inputs: what it takes, in eval mode, as arrays in and out."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.base import Feeds, Runner
from dacconv.formats.torch.convs import to_numpy
from dacconv.formats.torch.members import modules, own_methods
from dacconv.formats.torch.members import parameters as parameters_of
from dacconv.graph.types import Array, ValueSpec
from dacconv.support.user_code import user_code

Shapes = Mapping[str, tuple[int, ...]]


def shared_copy(module: nn.Module, *, clone_buffers: bool = False) -> nn.Module:
    """A deep copy of the module tree that shares every parameter, so it costs no memory.

    Raises:
        UnsupportedError: the module holds something that cannot be copied.
    """
    memo: dict[int, Any] = {}
    for owner in modules(module):
        for tensor in (*owner._parameters.values(), *_loose(owner)):
            if tensor is not None:
                memo[id(tensor)] = tensor
        for buffer in owner._buffers.values():
            if buffer is not None:
                kept = buffer.detach().clone() if clone_buffers else buffer
                memo.setdefault(id(buffer), kept)
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # the module's own __deepcopy__ or __reduce__
        raise UnsupportedError(
            f"the module cannot be copied: {type(error).__name__}: {error}",
            hint="save its state_dict and convert that with --arch",
        ) from error


def _loose(owner: nn.Module) -> list[torch.Tensor]:
    """Tensors in plain attributes, which refuse to be deep-copied when they are not leaves."""
    return [value for value in vars(owner).values() if isinstance(value, torch.Tensor)]


def for_inference(module: nn.Module) -> nn.Module:
    """A copy in eval mode whose buffers are its own: running it leaves ``module`` untouched."""
    made = shared_copy(module, clone_buffers=True)
    with own_methods(made):
        made.eval()
    return made


def input_specs(module: nn.Module, shapes: Shapes, where: str) -> tuple[ValueSpec, ...]:
    """The inputs that ``forward`` takes, in its order, with the shapes that the user gave.

    ``""`` names the first one. An input with a default is listed only where it has a shape.

    Raises:
        UsageError: a shape for an input that ``forward`` does not have, or not all given.
    """
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [p for p in parameters if p.kind not in kinds]
    open_ended = len(named) != len(parameters) or not parameters
    first = named[0].name if named else "input"
    given = {name or first: shape for name, shape in shapes.items()}
    known = [p.name for p in named]
    for name in given:
        if name not in known and not open_ended:
            raise UsageError(
                f"the model has no input '{name}'",
                where=where,
                hint=f"its forward takes {', '.join(known)}",
            )
    wanted = [p.name for p in named if p.default is inspect.Parameter.empty or p.name in given]
    wanted += [name for name in given if name not in wanted]
    missing = [name for name in wanted if name not in given]
    if given and missing:
        raise UsageError(
            f"no shape for input '{missing[0]}'",
            where=where,
            hint=f"--input-shape {missing[0]}:... for each of {', '.join(wanted)}",
        )
    dtype = float_dtype(module)
    return tuple(ValueSpec(name, given.get(name), dtype) for name in wanted or [first])


def float_dtype(module: nn.Module) -> str:
    """The numpy name of the dtype that the module's weights have."""
    for parameter in parameters_of(module):
        if parameter.is_floating_point():
            name = str(parameter.dtype).removeprefix("torch.")
            return name if name in ("float16", "float32", "float64") else "float32"
    return "float32"


def needs_shape(specs: tuple[ValueSpec, ...]) -> str | None:
    """Why a model with these inputs cannot be run; None where it can."""
    if any(spec.shape is None for spec in specs):
        names = ", ".join(f"'{spec.name}'" for spec in specs)
        return f"the size of its input {names} is not known: give --input-shape 1,3,224,224"
    return None


def as_arguments(module: nn.Module, feeds: Feeds) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """The positional and keyword arguments of ``forward`` for named arrays."""
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    like = next((p for p in parameters_of(module) if p.is_floating_point()), None)
    positional: list[torch.Tensor] = []
    keywords: dict[str, Any] = {}
    for index, (name, array) in enumerate(feeds.items()):
        tensor = torch.from_numpy(np.array(array, order="C", copy=True))
        if like is not None and tensor.is_floating_point():
            tensor = tensor.to(like.dtype)  # bfloat16 has no numpy dtype
        parameter = parameters.get(name)
        in_order = len(positional) == index
        if in_order and (parameter is None or parameter.kind is not parameter.KEYWORD_ONLY):
            same_place = list(parameters)[index : index + 1] == [name] or parameter is None
            if same_place:
                positional.append(tensor)
                continue
        keywords[name] = tensor
    return positional, keywords


def seeded(specs: tuple[ValueSpec, ...], seed: int = 0) -> dict[str, Array]:
    """One standard normal array per input, the same every time."""
    rng = np.random.default_rng(seed)
    return {
        spec.name: rng.standard_normal([s or 1 for s in spec.shape or ()]).astype(spec.dtype)
        for spec in specs
    }


def told_shapes(feeds: Feeds) -> str:
    """``x 1x3x32x32`` for messages."""
    return ", ".join(f"{name} {'x'.join(map(str, a.shape))}" for name, a in feeds.items())


def flat_outputs(result: Any) -> dict[str, Array]:
    """Tensors as arrays: by their keys in a dict, else ``output``, ``output_1``, ..."""
    named: dict[str, Array] = {}

    def visit(value: Any, name: str) -> None:
        if isinstance(value, torch.Tensor):
            count, free = 0, name or "output"
            while free in named:
                count += 1
                free = f"{name or 'output'}_{count}"
            named[free] = to_numpy(value)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                visit(item, f"{name}.{key}" if name else str(key))
        elif isinstance(value, (tuple, list)):
            for item in value:
                visit(item, name)
        elif hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
            for key in value.__dataclass_fields__:
                visit(getattr(value, key), f"{name}.{key}" if name else key)

    visit(result, "")
    return named


def module_runner(module: nn.Module, where: str | Path, threads: int | None) -> Runner:
    """Runs ``module``, which is in eval mode already, without gradients."""

    def run(feeds: Feeds) -> dict[str, Array]:
        if threads is not None:
            torch.set_num_threads(threads)
        args, kwargs = as_arguments(module, feeds)
        doing = f"the model's forward, given {told_shapes(feeds)},"
        hint = "is --input-shape what the network takes?"
        with user_code(doing, str(where), hint), torch.no_grad():
            result = module(*args, **kwargs)
        return flat_outputs(result)

    return run


def without_onednn(run: Runner) -> Runner:
    """``run`` with the kernels of torch's own in the place of oneDNN's.

    ``torch.backends.mkldnn.flags`` would do it too, but warns about TF32.
    """

    def call(feeds: Feeds) -> dict[str, Array]:
        before = torch.backends.mkldnn.set_flags(False)  # type: ignore[no-untyped-call]
        try:
            return run(feeds)
        finally:
            torch.backends.mkldnn.set_flags(before[0])  # type: ignore[no-untyped-call]

    return call
