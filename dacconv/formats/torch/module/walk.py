"""One run through a torch module that stops at chosen convs, several batches in step.

Every batch runs in a thread of its own, only one of them at a time: all run up to the same
conv, the visitor answers for all, and they go on one after the other. So any module can be
walked through, whatever its code does, and the result does not depend on the threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from dacconv.errors import UnsupportedError
from dacconv.formats.base import Visit
from dacconv.formats.torch.convs import to_numpy
from dacconv.formats.torch.members import submodule

Stop = Callable[[str, torch.Tensor], torch.Tensor]
"""Called in place of a conv: its node and input, its output."""


class _Ended(BaseException):
    """Unwinds the threads of a walk that another thread has broken."""


@dataclass
class _Batch:
    """One batch on its way: where it stands, and what it waits for."""

    index: int
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    at: str | None = None
    waiting: torch.Tensor | None = None
    answer: torch.Tensor | None = None
    result: Any = None
    error: BaseException | None = None
    ended: bool = False


def in_step(run: Callable[[int, Stop], Any], count: int, visit: Visit) -> list[Any]:
    """``run(index, stop)`` for each batch, in step; what they return.

    Raises:
        UnsupportedError: the batches do not call the same convs in the same order.
    """
    batches = [_Batch(index) for index in range(count)]
    threads = [threading.Thread(target=_work, args=(run, batch), daemon=True) for batch in batches]
    for thread in threads:
        thread.start()
    try:
        while True:
            for batch in batches:
                batch.go.release()
                batch.arrived.acquire()
                if batch.error is not None:
                    raise batch.error
            places = {batch.at for batch in batches}
            if len(places) > 1:
                raise UnsupportedError(
                    "the model calls other layers for one input than for another"
                )
            (place,) = places
            if place is None:
                return [batch.result for batch in batches]
            waiting = [batch.waiting for batch in batches if batch.waiting is not None]
            outputs = visit(place, [to_numpy(tensor) for tensor in waiting])
            for batch, tensor, array in zip(batches, waiting, outputs, strict=True):
                batch.waiting = None
                batch.answer = torch.from_numpy(np.ascontiguousarray(array)).to(tensor)
    finally:
        for batch, thread in zip(batches, threads, strict=True):
            batch.ended = True
            batch.go.release()
            thread.join()


def _work(run: Callable[[int, Stop], Any], batch: _Batch) -> None:
    def stop(node: str, x: torch.Tensor) -> torch.Tensor:
        batch.at, batch.waiting = node, x
        batch.arrived.release()
        batch.go.acquire()
        if batch.ended or batch.answer is None:
            raise _Ended
        answer, batch.answer = batch.answer, None
        return answer

    batch.go.acquire()
    try:
        if not batch.ended:
            with torch.no_grad():
                batch.result = run(batch.index, stop)
    except _Ended:
        pass
    except BaseException as error:  # raised again where the walk was asked for
        batch.error = error
    batch.at = None
    batch.arrived.release()


@contextmanager
def stopping(
    module: nn.Module, sites: Mapping[str, str], nodes: Sequence[str]
) -> Iterator[Callable[[Stop], None]]:
    """The convs of ``module`` at ``nodes`` call the thread's own ``stop``, which the yielded
    function sets, instead. ``sites`` are the names of the modules.

    A module that is called several times has several nodes, in the order of its calls.
    """
    local = threading.local()
    targets = frozenset(nodes)
    calls: dict[str, list[str]] = {}
    for node, path in sites.items():
        calls.setdefault(path, []).append(node)

    def begin(stop: Stop) -> None:
        local.stop, local.done = stop, dict.fromkeys(calls, 0)

    patched: list[nn.Module] = []
    try:
        for path, names in calls.items():
            if targets.intersection(names):
                conv = submodule(module, path)
                conv.forward = _replacement(conv.forward, path, names, targets, local)
                patched.append(conv)
        yield begin
    finally:
        for conv in patched:
            del conv.forward


def _replacement(
    original: Callable[..., Any],
    path: str,
    names: Sequence[str],
    targets: frozenset[str],
    local: threading.local,
) -> Callable[..., Any]:
    def forward(x: torch.Tensor, *more: Any, **named: Any) -> Any:
        call = local.done[path]
        local.done[path] += 1
        if call < len(names) and names[call] in targets:
            return local.stop(names[call], x)
        return original(x, *more, **named)

    return forward


class Stopping(fx.Interpreter):
    """Runs a graph module; the nodes in ``places`` call ``stop`` with their first argument."""

    def __init__(self, module: fx.GraphModule, places: Mapping[str, str], stop: Stop) -> None:
        super().__init__(module)
        self._places, self._stop = places, stop

    def run_node(self, n: fx.Node) -> Any:
        """One node of the graph."""
        if n.name in self._places:
            args, _ = self.fetch_args_kwargs_from_env(n)
            return self._stop(self._places[n.name], args[0])
        return super().run_node(n)
