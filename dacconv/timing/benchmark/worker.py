"""A process with one model. It reads requests and writes answers, one line of JSON each.

It is started as ``python -m dacconv.timing.benchmark.worker`` by ``client.Worker``. The first
request is ``load``. The process ends when its input ends, even in the middle of a run, so that it
never outlives its parent.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, TextIO

import numpy as np

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from dacconv.errors import DacconvError
from dacconv.formats import timing_adapter
from dacconv.formats.base import LoadOptions
from dacconv.formats.inputs import make_inputs
from dacconv.formats.sniff import kind
from dacconv.formats.timing import Setting, Step, TimedModel
from dacconv.graph.types import Array, ValueSpec
from dacconv.timing.benchmark import memory

MOST_RUNS = 1_000_000


class Server:
    """Holds the model and answers requests: every method is a request."""

    def __init__(self) -> None:
        self._model: TimedModel | None = None
        self._step: Step | None = None
        self._feeds: dict[str, Array] = {}
        self._memory: dict[str, int | None] = {}

    def load(
        self,
        path: str,
        options: Mapping[str, Any],
        setting: Mapping[str, Any],
        inputs: list[Mapping[str, Any]],
        seed: int,
        profile: bool,
    ) -> None:
        """Open the model and run it once, unless it is to be profiled, on seeded inputs."""
        adapter = timing_adapter(kind(Path(path)))
        adapter.import_runtime()
        runtime = memory.resident()
        self._model = adapter.load_timed(Path(path), _options(options), Setting(**setting))
        specs = [ValueSpec(s["name"], tuple(s["shape"]), s["dtype"]) for s in inputs]
        self._feeds = make_inputs(specs, np.random.default_rng(seed))
        if profile:
            return
        self._step = self._model.step(self._feeds)
        self._step()
        peak = memory.peak()
        is_reset = memory.forget_peak()
        self._step()
        self._memory = {"runtime": runtime, "peak": peak, "running": None}
        if is_reset:
            self._memory["running"] = memory.peak()

    def run(self, seconds: float, runs: int) -> dict[str, Any]:
        """Run it once untimed, then for ``seconds`` and at least ``runs`` times.

        The median is that of the runs without interruption by other work, where there are any.
        Long runs are interrupted more often, so interruptions would not cancel in a ratio.
        """
        step = self._step
        if step is None:
            raise RuntimeError("no model is loaded")
        clock = time.perf_counter
        step()  # fills the caches again after the turns of the other models
        undisturbed: list[float] = []
        interrupted: list[float] = []
        end, before = clock() + seconds, _interruptions()
        while (count := len(undisturbed) + len(interrupted)) < runs or (
            clock() < end and count < MOST_RUNS
        ):
            start = clock()
            step()
            duration = clock() - start
            after = _interruptions()
            (undisturbed if after == before else interrupted).append(duration)
            before = after
        return {
            "median": median(undisturbed or interrupted),
            "runs": count,
            "interrupted": len(interrupted),
        }

    def memory(self) -> dict[str, int | None]:
        """The fields of :class:`~dacconv.timing.benchmark.result.Memory`."""
        fields = dict(self._memory)
        now = memory.peak()
        if fields.get("running") is not None:
            fields["running"] = now
        if now is not None:
            fields["peak"] = max(now, fields.get("peak") or 0)
        fields["device"] = self._model.device_peak() if self._model else None
        return fields

    def profile(self, runs: int) -> dict[str, Any]:
        """The profile of so many runs by the runtime's profiler."""
        if self._model is None:
            raise RuntimeError("no model is loaded")
        return asdict(self._model.profile(self._feeds, runs))


def serve(requests: queue.SimpleQueue[str], answers: TextIO) -> None:
    """Answer requests until the process ends."""
    server = Server()
    while True:
        request = json.loads(requests.get())
        try:
            answer = {"ok": getattr(server, request["do"])(**request["with"])}
        except DacconvError as error:
            fields = {"what": error.what, "where": error.where, "hint": error.hint}
            answer = {"error": fields | {"kind": type(error).__name__}}
        except MemoryError:
            answer = {"error": {"what": "out of memory", "where": "", "hint": "", "kind": ""}}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _interruptions() -> int:
    """The number of times that a thread of this process lost its core; 0 where not counted."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _options(fields: Mapping[str, Any]) -> LoadOptions:
    shapes = {name: tuple(shape) for name, shape in fields["input_shapes"].items()}
    return LoadOptions(**{**fields, "input_shapes": shapes, "vouched": tuple(fields["vouched"])})


def _read(lines: TextIO, put: Callable[[str], None]) -> None:
    """Queue the requests; end the process when the input ends."""
    for line in lines:
        put(line)
    os._exit(0)


def main() -> None:
    """Serve with stdout for the answers only: the output of a model's own code goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, requests.put), daemon=True).start()
    serve(requests, answers)


if __name__ == "__main__":
    main()
