"""Timing in ONNX Runtime: whole files, and single layers.

ONNX Runtime opens a file by itself: dacconv holds no copy of it that would count as its memory. A
layer is run between two cheap convs, so that the values around it have the layout that they would
have inside a network.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.base import Feeds, LoadOptions
from dacconv.formats.onnx.run import document_session, refusal, session
from dacconv.formats.timing import Profile, Setting, SpanKey, Step, fastest
from dacconv.graph.convs import swap_channels
from dacconv.graph.types import Branches, Conv, Rewrite

if TYPE_CHECKING:
    from dacconv.formats.onnx.model import OnnxModel

_NODE = "_kernel_time"
"""What ONNX Runtime's profiler appends to the name of a node."""
_LAYER, _BEFORE, _AFTER = "layer", "before", "after"
_OPSET, _IR = 17, 8
_PROFILED_RUNS = 10


def import_runtime() -> None:
    """See :class:`~dacconv.formats.timing.TimingAdapter`."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            "onnxruntime is not installed, so the model cannot be timed",
            hint="pip install onnxruntime",
        ) from error


def open_model(path: Path, options: LoadOptions) -> OnnxModel:
    """The model behind dacconv's protocol; unlike elsewhere it may be quantised."""
    from dacconv.formats.onnx.load import read
    from dacconv.formats.onnx.model import OnnxModel

    return OnnxModel(path, read(path), options)


def load_timed(path: Path, options: LoadOptions, setting: Setting) -> TimedOnnx:
    """A session on the file, with the threads of the setting.

    Raises:
        UsageError: the setting has options that are for torch only.
    """
    for is_set, name in (
        (setting.device != "cpu", "--device"),
        (setting.dtype is not None, "--dtype"),
        (setting.channels_last, "--channels-last"),
    ):
        if is_set:
            raise UsageError(
                f"{name} is for torch models; an ONNX file runs as it is in ONNX Runtime, on "
                "the CPU",
                where=str(path),
            )
    return TimedOnnx(path, setting.threads)


class TimedOnnx:
    """A live session; see :class:`~dacconv.formats.timing.TimedModel`."""

    def __init__(self, path: Path, threads: int | None) -> None:
        self._path, self._threads = path, threads
        self._session = session(path, threads=threads, spin=True)

    def step(self, feeds: Feeds) -> Step:
        """A function that runs the session and drops the outputs."""
        run, inputs = self._session.run, dict(feeds)

        def step() -> None:
            try:
                run(None, inputs)
            except Exception as error:
                raise refusal("cannot run the model", error) from error

        return step

    def profile(self, feeds: Feeds, runs: int) -> Profile:
        """The profile of a second session under ONNX Runtime's profiler, without its first run."""
        with tempfile.TemporaryDirectory(prefix="dacconv-") as folder:
            profiled = session(
                self._path, threads=self._threads, spin=True, profile=str(Path(folder) / "profile")
            )
            for _ in range(runs + 1):
                profiled.run(None, dict(feeds))
            events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
        return read_events(events)

    def device_peak(self) -> int | None:
        """None, because it runs on the CPU."""
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


@contextmanager
def layer_runner(
    conv: Conv,
    shape: tuple[int, ...],
    branches: Branches | None,
    *,
    threads: int,
    device: str,
) -> Iterator[Step]:
    """See :class:`~dacconv.formats.timing.TimingAdapter`; ``device`` is the CPU."""
    model = _layer_model(conv, shape)
    if branches is not None:
        edit = Rewrite(_LAYER, f"{_BEFORE}_out", branches, drop=(_LAYER,))
        model = model.rewrite([edit])
    sessions = [document_session(model.document, threads=threads, spin=True)]
    feeds = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    try:
        yield lambda: sessions[0].run(None, feeds)
    finally:
        sessions.clear()  # sessions that are alive together take threads from each other


def layer_overhead(conv: Conv, shape: tuple[int, ...], *, threads: int, seconds: float) -> float:
    """The seconds that the profiler does not count for the conv itself."""
    with tempfile.TemporaryDirectory(prefix="dacconv-") as folder:
        prefix = str(Path(folder) / "profile")
        session = document_session(
            _layer_model(conv, shape).document, threads=threads, spin=True, profile=prefix
        )
        feeds = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
        for _ in range(_PROFILED_RUNS):
            session.run(None, feeds)
        entries = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: dict[str, list[float]] = defaultdict(list)
    for entry in entries:
        name = str(entry.get("name", ""))
        if entry.get("cat") == "Node" and name.endswith(_NODE):
            times[name].append(float(entry["dur"]))
    medians = {name: statistics.median(values) for name, values in times.items()}
    own = sum(time for name, time in medians.items() if name.startswith((_LAYER, "inner")))
    share = own / sum(medians.values()) if medians else 1.0
    return seconds * (1 - share)


def device_name(name: str) -> str:
    """The name as it is: layers are timed on the CPU only."""
    return name


def _layer_model(conv: Conv, shape: tuple[int, ...]) -> OnnxModel:
    """The conv between two depthwise 1x1 convs, opened like any other model."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from dacconv.formats.onnx.model import load

    out = conv.out_channels
    ones = (1,) * len(conv.kernel)
    weight = swap_channels(conv.weight, conv.groups) if conv.transposed else conv.weight
    arrays = {
        "w": np.asarray(weight, np.float32),
        "wb": np.ones((shape[1], 1, *ones), np.float32),
        "wa": np.ones((out, 1, *ones), np.float32),
    }
    pads: dict[str, Any] = {"pads": [b for b, _ in conv.padding] + [e for _, e in conv.padding]}
    if conv.auto_pad:
        pads = {"auto_pad": conv.auto_pad}
    if conv.transposed:
        pads |= {"output_padding": list(conv.output_padding)}
    operator = "ConvTranspose" if conv.transposed else "Conv"
    nodes = [
        helper.make_node("Conv", ["x", "wb"], [f"{_BEFORE}_out"], name=_BEFORE, group=shape[1]),
        helper.make_node(
            operator, [f"{_BEFORE}_out", "w"], ["inner_out"], name=_LAYER,
            strides=list(conv.stride), dilations=list(conv.dilation), group=conv.groups, **pads,
        ),
        helper.make_node("Conv", ["inner_out", "wa"], ["y"], name=_AFTER, group=out),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opset = [helper.make_opsetid("", _OPSET)]
    proto = helper.make_model(graph, opset_imports=opset, ir_version=_IR)
    with tempfile.TemporaryDirectory(prefix="dacconv-") as folder:
        path = Path(folder) / "layer.onnx"
        onnx.save(proto, path)
        return load(path, LoadOptions())
