"""One model in a process of its own: requests as lines of JSON in, answers as lines out.

``python -m dacconv.timing.benchmark.worker``; ``client.Worker`` is the other end. The first request
is ``load``. The process ends by itself when its input ends, even in the middle of a run, so
it never outlives its parent.
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
    """Holds the model, and answers requests; each method is one."""

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
        held = memory.resident()
        self._model = adapter.load_timed(Path(path), _options(options), Setting(**setting))
        specs = [ValueSpec(s["name"], tuple(s["shape"]), s["dtype"]) for s in inputs]
        self._feeds = make_inputs(specs, np.random.default_rng(seed))
        if profile:
            return
        self._step = self._model.step(self._feeds)
        self._step()
        loaded = memory.peak()
        again = memory.forget_peak()
        self._step()
        self._memory = {"runtime": held, "peak": loaded, "running": None}
        if again:
            self._memory["running"] = memory.peak()

    def run(self, seconds: float, runs: int) -> dict[str, Any]:
        """Run it once untimed, then for ``seconds`` and at least ``runs`` times.

        The median is that of the runs in which no thread had to leave its core to other work,
        where there are any: interruptions hit long runs more often, so they would not cancel
        out in a ratio.
        """
        step = self._step
        if step is None:
            raise RuntimeError("no model is loaded")
        clock = time.perf_counter
        step()  # what the other models did to the caches is not this one's fault
        calm: list[float] = []
        interrupted: list[float] = []
        end, before = clock() + seconds, _interruptions()
        while (done := len(calm) + len(interrupted)) < runs or (clock() < end and done < MOST_RUNS):
            began = clock()
            step()
            taken = clock() - began
            after = _interruptions()
            (calm if after == before else interrupted).append(taken)
            before = after
        return {
            "median": median(calm or interrupted),
            "runs": done,
            "interrupted": len(interrupted),
        }

    def memory(self) -> dict[str, int | None]:
        """Bytes: the runtime alone, the peak from the start, the peak while running."""
        held = dict(self._memory)
        now = memory.peak()
        if held.get("running") is not None:
            held["running"] = now
        if now is not None:
            held["peak"] = max(now, held.get("peak") or 0)
        held["device"] = self._model.device_peak() if self._model else None
        return held

    def profile(self, runs: int) -> dict[str, Any]:
        """The runtime's profile of so many runs."""
        if self._model is None:
            raise RuntimeError("no model is loaded")
        return asdict(self._model.profile(self._feeds, runs))


def serve(requests: queue.SimpleQueue[str], answers: TextIO) -> None:
    """Answer until the process is ended."""
    server = Server()
    while True:
        request = json.loads(requests.get())
        try:
            answer = {"ok": getattr(server, request["do"])(**request["with"])}
        except DacconvError as error:
            told = {"what": error.what, "where": error.where, "hint": error.hint}
            answer = {"error": told | {"kind": type(error).__name__}}
        except MemoryError:
            answer = {"error": {"what": "out of memory", "where": "", "hint": "", "kind": ""}}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _interruptions() -> int:
    """How often a thread of this process had to leave its core; 0 where nobody counts."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _options(given: Mapping[str, Any]) -> LoadOptions:
    shapes = {name: tuple(shape) for name, shape in given["input_shapes"].items()}
    return LoadOptions(**{**given, "input_shapes": shapes, "vouched": tuple(given["vouched"])})


def _read(lines: TextIO, put: Callable[[str], None]) -> None:
    """Hand on the requests; end the process when nobody can send any more."""
    for line in lines:
        put(line)
    os._exit(0)


def main() -> None:
    """Keep stdout for the answers: what a model's code prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, requests.put), daemon=True).start()
    serve(requests, answers)


if __name__ == "__main__":
    main()
