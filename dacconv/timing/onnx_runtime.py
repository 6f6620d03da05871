"""Timing ONNX files: ONNX Runtime opens the file itself, and dacconv holds none of it."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.base import Feeds, LoadOptions
from dacconv.formats.onnx.run import refusal, session
from dacconv.timing.runtime import Profile, Setting, SpanKey, Step, fastest

_NODE = "_kernel_time"
"""What ONNX Runtime's profiler puts behind the name of a node."""


def prepare() -> None:
    """Import the runtime, so that its own memory is known before a model is loaded."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            "onnxruntime is not installed, so the model cannot be timed",
            hint="pip install onnxruntime",
        ) from error


def opened(path: Path, options: LoadOptions) -> Any:
    """The model behind dacconv's protocol, a quantised one too: what it takes, and its graph."""
    from dacconv.formats.onnx.load import read
    from dacconv.formats.onnx.model import OnnxModel

    return OnnxModel(path, read(path), options)


def loaded(path: Path, options: LoadOptions, setting: Setting) -> TimedOnnx:
    """A session on the file, with the threads of the setting.

    Raises:
        UsageError: the setting asks for what is torch's alone.
    """
    for given, name in (
        (setting.device != "cpu", "--device"),
        (setting.dtype is not None, "--dtype"),
        (setting.channels_last, "--channels-last"),
    ):
        if given:
            raise UsageError(
                f"{name} is for torch models; an ONNX file runs as it is in ONNX Runtime, on "
                "the CPU",
                where=str(path),
            )
    return TimedOnnx(path, setting.threads)


class TimedOnnx:
    """A live session; see ``Timed``."""

    def __init__(self, path: Path, threads: int | None) -> None:
        self._path, self._threads = path, threads
        self._session = session(path, threads=threads, spin=True)

    def step(self, feeds: Feeds) -> Step:
        """Runs the session; outputs are made and thrown away."""
        run, inputs = self._session.run, dict(feeds)

        def step() -> None:
            try:
                run(None, inputs)
            except Exception as error:
                raise refusal("cannot run the model", error) from error

        return step

    def profile(self, feeds: Feeds, runs: int) -> Profile:
        """Run a session of its own under ONNX Runtime's profiler; the first run is left out."""
        with tempfile.TemporaryDirectory(prefix="dacconv-") as folder:
            profiled = session(
                self._path, threads=self._threads, spin=True, profile=str(Path(folder) / "profile")
            )
            for _ in range(runs + 1):
                profiled.run(None, dict(feeds))
            events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
        return read_events(events)

    def device_peak(self) -> int | None:
        """None: it runs on the CPU."""
        return None


def read_events(events: Iterable[Mapping[str, Any]]) -> Profile:
    """ONNX Runtime's profile by node, without the first run.

    Operators inside a loop or a branch belong to the node that holds them.
    """
    totals: list[float] = []
    times: dict[SpanKey, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    nodes: list[tuple[int, int, SpanKey]] = []
    for event in sorted(events, key=lambda event: event["ts"] + event["dur"]):
        if event["cat"] == "Session" and event["name"] == "model_run":
            end = 0
            for begin, after, key in sorted(nodes, key=lambda node: (node[0], -node[1])):
                if begin >= end:  # else it lies inside the node before
                    times[key][len(totals) - 1] += (after - begin) / 1e3
                    end = after
            totals.append(event["dur"] / 1e3)
            nodes = []
        elif event["cat"] == "Node" and event["name"].endswith(_NODE):
            facts = event["args"]
            key = event["name"].removesuffix(_NODE), facts["op_name"], int(facts["node_index"])
            nodes.append((event["ts"], event["ts"] + event["dur"], key))
    return fastest(times, totals[1:])
