"""Timing in torch: whole models in eval and inference mode, and single layers."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import fx, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils import _pytree as pytree

from dacconv import formats
from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.base import Feeds, LoadOptions, Model
from dacconv.formats.sniff import kind
from dacconv.formats.timing import Profile, Setting, SpanKey, Step, fastest
from dacconv.formats.torch.convs import Builder
from dacconv.formats.torch.gradients import place_for
from dacconv.formats.torch.members import named_modules, own_methods
from dacconv.graph.types import Branches, Conv, Repeat
from dacconv.support.user_code import user_code

_RANGE, _OPERATOR = "dacconv::", "aten::"
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
MakeArguments = Callable[[Feeds], tuple[Any, Any]]


class Prepared(Protocol):
    """A torch model that gives access to its module."""

    def prepared(self) -> tuple[nn.Module, MakeArguments]:
        """The module in eval mode, and a function from feeds to the arguments of its forward."""
        ...

    def call_names(self) -> Mapping[str, str]:
        """The names of a program's calls by the names of its fx nodes; empty for a module."""
        ...


def import_runtime() -> None:
    """Nothing is left to do: importing this file has imported torch."""


def open_model(path: Path, options: LoadOptions) -> Model:
    """The model behind dacconv's protocol; ``--arch`` is ignored for a ``.pt2`` file."""
    return formats.open_model(path, _fitting(path, options))


def load_timed(path: Path, options: LoadOptions, setting: Setting) -> TimedTorch:
    """The module, on the device and in the dtype and memory format of the setting.

    Raises:
        UsageError: torch does not have the device or the dtype here.
    """
    device = _device(setting.device, str(path))
    if setting.dtype is not None and setting.dtype not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise UsageError(f"'{setting.dtype}' is not one of {known}", where="--dtype")
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    model = cast(Prepared, open_model(path, options))
    module, arguments = model.prepared()
    dtype = None if setting.dtype is None else _DTYPES[setting.dtype]
    doing = f"moving the module to {setting.device}, {dtype or 'its dtype'},"
    with user_code(doing, str(path)), own_methods(module):
        module = module.to(device=device, dtype=dtype)
        if setting.channels_last:
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    place = _Placer(arguments, device, dtype, setting.channels_last)
    return TimedTorch(module, place, model.call_names, str(path))


def _fitting(path: Path, options: LoadOptions) -> LoadOptions:
    """The options without the architecture for a file that carries its own graph."""
    return replace(options, arch=None, arch_args={}) if kind(path) == "pt2" else options


def _device(name: str, where: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"'{name}' is not a device of torch", where="--device") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"torch {torch.__version__} sees no CUDA device here",
            where="--device",
            hint="leave --device out to time on the CPU",
        )
    try:
        torch.empty(1, device=device)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        text = next(iter(str(error).splitlines()), "")
        raise UsageError(f"'{name}' cannot be used: {text}", where="--device") from error
    return device


@dataclass(frozen=True, slots=True)
class _Placer:
    """Makes the arguments of a forward on the device and in the dtype of the module."""

    arguments: MakeArguments
    device: torch.device
    dtype: torch.dtype | None
    channels_last: bool

    def __call__(self, feeds: Feeds) -> tuple[list[Any], dict[str, Any]]:
        args, kwargs = self.arguments(feeds)
        return pytree.tree_map(self._place, list(args)), pytree.tree_map(self._place, dict(kwargs))

    def _place(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        real = self.dtype if value.is_floating_point() else None
        value = value.to(device=self.device, dtype=real)
        if self.channels_last and value.ndim == 4:
            return value.contiguous(memory_format=torch.channels_last)
        return value


class TimedTorch:
    """A live module; see :class:`~dacconv.formats.timing.TimedModel`."""

    def __init__(
        self,
        module: nn.Module,
        place: _Placer,
        names: Callable[[], Mapping[str, str]],
        where: str,
    ) -> None:
        self._module, self._place, self._names, self._where = module, place, names, where
        self._device = place.device

    def step(self, feeds: Feeds) -> Step:
        """A function that runs the module in inference mode and waits for the device."""
        args, kwargs = self._place(feeds)
        module = self._module

        def step() -> None:
            with torch.inference_mode():
                module(*args, **kwargs)
            self._wait()

        hint = "do --input-shape, --dtype and --device fit it?"
        with user_code("the model's forward", self._where, hint):
            step()
        return step

    def profile(self, feeds: Feeds, runs: int) -> Profile:
        """The profile of torch's profiler; an operator belongs to the module that calls it."""
        if self._device.type != "cpu":
            raise UnsupportedError("times by layer are taken on the CPU only", where="--layers")
        args, kwargs = self._place(feeds)
        with self._named_calls() as call, torch.inference_mode():
            call(*args, **kwargs)
            with profile(activities=[ProfilerActivity.CPU]) as taken:
                for _ in range(runs):
                    with record_function(_RANGE):
                        call(*args, **kwargs)
        return read_events(cast("list[FunctionEvent]", taken.events() or []))

    def device_peak(self) -> int | None:
        """The most bytes that torch's allocator held; None on the CPU."""
        if self._device.type != "cuda":
            return None
        return int(torch.cuda.max_memory_allocated(self._device))

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @contextlib.contextmanager
    def _named_calls(self) -> Iterator[Callable[..., Any]]:
        """The module, or its program, with a profiler range around every layer."""
        names = self._names()
        if isinstance(self._module, fx.GraphModule) and names:
            yield _Named(self._module, names).run_flat
            return
        with _ranges(self._module):
            yield self._module


class _Named(fx.Interpreter):
    """Interprets a program, with a range around each call that has a name."""

    def __init__(self, module: fx.GraphModule, names: Mapping[str, str]) -> None:
        super().__init__(module)
        self._names = names

    def run_flat(self, *args: Any, **kwargs: Any) -> Any:
        """Run with the arguments in the order of the placeholders."""
        return self.run(*args, *kwargs.values())

    def run_node(self, n: fx.Node) -> Any:
        """Run one call within a range of its name."""
        if n.op != "call_function":
            return super().run_node(n)
        with record_function(_RANGE + self._names.get(n.name, n.name)):
            return super().run_node(n)


@contextlib.contextmanager
def _ranges(root: nn.Module) -> Iterator[None]:
    """Hooks that record in the profile which module is running."""
    open_ranges: list[Any] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            opened_range = record_function(_RANGE + name)
            opened_range.__enter__()  # type: ignore[no-untyped-call]
            open_ranges.append(opened_range)

        return hook

    def leave(*_: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    handles = []
    for name, module in named_modules(root):
        if name:
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def read_events(events: Iterable[FunctionEvent]) -> Profile:
    """torch's profile by module and operator; operators called by other operators are left out."""
    wholes: dict[int, float] = {}
    times: dict[SpanKey, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for event in events:
        if event.name == _RANGE:
            wholes[event.id] = event.cpu_time_total / 1e3
        elif event.name.startswith(_OPERATOR):
            above = list(_above(event))
            if not above or any(e.name.startswith(_OPERATOR) for e in above):
                continue
            module = next(e.name for e in above if e.name.startswith(_RANGE))
            key = module.removeprefix(_RANGE), event.name.removeprefix(_OPERATOR), None
            times[key][above[-1].id] += event.cpu_time_total / 1e3
    runs = {identity: run for run, identity in enumerate(wholes)}
    by_run = {key: {runs[identity]: ms for identity, ms in of.items()} for key, of in times.items()}
    return fastest(by_run, list(wholes.values()))


def _above(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """The events that contain an event, the innermost first."""
    parent = event.cpu_parent
    while parent is not None:
        yield parent
        parent = parent.cpu_parent


@contextlib.contextmanager
def layer_runner(
    conv: Conv,
    shape: tuple[int, ...],
    branches: Branches | None,
    *,
    threads: int,
    device: str,
) -> Iterator[Step]:
    """See :class:`~dacconv.formats.timing.TimingAdapter`."""
    place = place_for(device)
    threads_before = torch.get_num_threads()
    with torch.no_grad():
        module = _layer_module(((conv,),) if branches is None else branches)
        module = module.to(place).eval()
        values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        source = torch.from_numpy(values).to(place)

    def run() -> None:
        with torch.inference_mode():
            module(source)
            if place.type == "cuda":
                torch.cuda.synchronize(place)

    torch.set_num_threads(threads)
    try:
        yield run
    finally:
        torch.set_num_threads(threads_before)


def layer_overhead(conv: Conv, shape: tuple[int, ...], *, threads: int, seconds: float) -> float:
    """Zero: the layer is run alone."""
    return 0.0


def device_name(name: str) -> str:
    """See :class:`~dacconv.formats.timing.TimingAdapter`."""
    if not name.startswith("cuda"):
        return name
    return f"{name} {torch.cuda.get_device_name(place_for(name))}"


class _Copies(nn.Module):
    """The concatenation by which a rewritten program repeats the channels of its input."""

    def __init__(self, copies: int, axes: int) -> None:
        super().__init__()
        self.copies, self.axis = copies, -1 - axes

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.cat([input] * self.copies, dim=self.axis)


def _layer_module(branches: Branches) -> nn.Module:
    """The chains as a module; a program repeats its input by one concatenation."""
    builder, like = Builder(), nn.Conv1d(1, 1, 1)
    first, *rest = branches[0]
    if not isinstance(first, Repeat) or first.interleaved:
        return builder.branches(branches, like)
    return nn.Sequential(_Copies(first.copies, first.axes), builder.branches((tuple(rest),), like))
