"""One layer of a network in ONNX Runtime, as it is and split, to be timed."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dacconv.formats.base import LoadOptions
from dacconv.formats.onnx.model import OnnxModel, load
from dacconv.formats.onnx.run import document_session
from dacconv.graph.types import Branches, Conv, Rewrite

_LAYER, _BEFORE, _AFTER = "layer", "before", "after"
_OPSET, _IR = 17, 8
_RUNS = 10


@contextmanager
def opened(
    conv: Conv, shape: tuple[int, ...], branches: Branches | None, threads: int
) -> Iterator[Callable[[], None]]:
    """What runs the layer once: the conv, or the ``branches`` in its place.

    ``shape`` is that of its input. It stands between two cheap convs, so that the layout of the
    values around it is that which it would meet inside a network.
    """
    model = _model(conv, shape)
    if branches is not None:
        edit = Rewrite(_LAYER, f"{_BEFORE}_out", branches, drop=(_LAYER,))
        model = model.rewrite([edit])
    held = [document_session(model.document, threads=threads, spin=True)]
    feeds = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    try:
        yield lambda: held[0].run(None, feeds)
    finally:
        held.clear()  # sessions that are alive together take threads from each other


def around(conv: Conv, shape: tuple[int, ...], threads: int, whole: float) -> float:
    """The seconds of a run of ``opened`` that are not the conv's: ``whole`` less its kernel's."""
    with tempfile.TemporaryDirectory(prefix="dacconv-") as folder:
        prefix = str(Path(folder) / "profile")
        session = document_session(
            _model(conv, shape).document, threads=threads, spin=True, profile=prefix
        )
        feeds = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
        for _ in range(_RUNS):
            session.run(None, feeds)
        entries = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: dict[str, list[float]] = defaultdict(list)
    for entry in entries:
        name = str(entry.get("name", ""))
        if entry.get("cat") == "Node" and name.endswith("_kernel_time"):
            times[name].append(float(entry["dur"]))
    medians = {name: statistics.median(found) for name, found in times.items()}
    own = sum(time for name, time in medians.items() if name.startswith((_LAYER, "inner")))
    share = own / sum(medians.values()) if medians else 1.0
    return whole * (1 - share)


def _model(conv: Conv, shape: tuple[int, ...]) -> OnnxModel:
    """The conv between two depthwise 1x1 convs, opened as any other model is."""
    out = conv.out_channels
    ones = (1,) * len(conv.kernel)
    arrays = {
        "w": np.asarray(conv.weight, np.float32),
        "wb": np.ones((shape[1], 1, *ones), np.float32),
        "wa": np.ones((out, 1, *ones), np.float32),
    }
    pads: dict[str, Any] = {"pads": [b for b, _ in conv.padding] + [e for _, e in conv.padding]}
    if conv.auto_pad:
        pads = {"auto_pad": conv.auto_pad}
    nodes = [
        helper.make_node("Conv", ["x", "wb"], [f"{_BEFORE}_out"], name=_BEFORE, group=shape[1]),
        helper.make_node(
            "Conv", [f"{_BEFORE}_out", "w"], ["inner_out"], name=_LAYER,
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
    made = helper.make_model(graph, opset_imports=opset, ir_version=_IR)
    with tempfile.TemporaryDirectory(prefix="dacconv-") as folder:
        path = Path(folder) / "layer.onnx"
        onnx.save(made, path)
        return load(path, LoadOptions())
