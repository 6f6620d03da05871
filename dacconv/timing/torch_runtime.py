"""Timing torch models: eval mode, inference mode, on the device and in the dtype asked for."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import fx, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils import _pytree as pytree

from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats import open_model
from dacconv.formats.base import Feeds, LoadOptions, Model
from dacconv.formats.sniff import kind
from dacconv.support.user_code import user_code
from dacconv.timing.runtime import Profile, Setting, SpanKey, Step, fastest

_RANGE, _OPERATOR = "dacconv::", "aten::"
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
MakeArguments = Callable[[Feeds], tuple[Any, Any]]


class Prepared(Protocol):
    """A torch model that hands out its module."""

    def prepared(self) -> tuple[nn.Module, MakeArguments]:
        """The module in eval mode, and what makes the arguments of its forward."""
        ...

    def call_names(self) -> Mapping[str, str]:
        """The names of a program's calls by the names of its fx nodes; none for a module."""
        ...


def prepare() -> None:
    """Nothing: importing this file has imported torch."""


def opened(path: Path, options: LoadOptions) -> Model:
    """The model behind dacconv's protocol; ``--arch`` is for state dicts alone."""
    return open_model(path, _fitting(path, options))


def loaded(path: Path, options: LoadOptions, setting: Setting) -> TimedTorch:
    """The module, moved to where and what the setting says.

    Raises:
        UsageError: the device or the dtype is none that torch has here.
    """
    device = _device(setting.device, str(path))
    if setting.dtype is not None and setting.dtype not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise UsageError(f"'{setting.dtype}' is not one of {known}", where="--dtype")
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    model = cast(Prepared, opened(path, options))
    module, arguments = model.prepared()
    dtype = None if setting.dtype is None else _DTYPES[setting.dtype]
    with user_code(f"moving the module to {setting.device}, {dtype or 'its dtype'},", str(path)):
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
    """Makes the arguments of a forward where, and as what, the module takes them."""

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
    """A live module; see ``Timed``."""

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
        """Runs the module in inference mode, and waits for the device."""
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
        """Run it under torch's profiler, with the module that is at work written beside."""
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
        """Bytes that torch's allocator held at most; None on the CPU."""
        if self._device.type != "cuda":
            return None
        return int(torch.cuda.max_memory_allocated(self._device))

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @contextlib.contextmanager
    def _named_calls(self) -> Iterator[Callable[..., Any]]:
        """The module, or its program, with a range of the profiler around every part."""
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
        """One call, under its name."""
        if n.op != "call_function":
            return super().run_node(n)
        with record_function(_RANGE + self._names.get(n.name, n.name)):
            return super().run_node(n)


@contextlib.contextmanager
def _ranges(root: nn.Module) -> Iterator[None]:
    """Hooks that tell the profiler which module is at work."""
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
    for name, module in root.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def read_events(events: Iterable[FunctionEvent]) -> Profile:
    """torch's profile by module and operator, of the operators that no other one called."""
    wholes: dict[int, float] = {}
    times: dict[SpanKey, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for event in events:
        if event.name == _RANGE:
            wholes[event.id] = event.cpu_time_total / 1e3
        elif event.name.startswith(_OPERATOR):
            above = list(_above(event))
            if not above or any(one.name.startswith(_OPERATOR) for one in above):
                continue
            module = next(one.name for one in above if one.name.startswith(_RANGE))
            key = module.removeprefix(_RANGE), event.name.removeprefix(_OPERATOR), None
            times[key][above[-1].id] += event.cpu_time_total / 1e3
    runs = {identity: run for run, identity in enumerate(wholes)}
    by_run = {key: {runs[one]: ms for one, ms in of.items()} for key, of in times.items()}
    return fastest(by_run, list(wholes.values()))


def _above(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """What an event lies in, the innermost first."""
    parent = event.cpu_parent
    while parent is not None:
        yield parent
        parent = parent.cpu_parent
