"""Measure depthwise and pointwise convs of several sizes in ONNX Runtime, on one thread.

    python scripts/bench_depthwise.py [SIZE...]

A SIZE is CxHxW. It prints the time of one conv, the outputs per second and the multiply-adds per
second. The time is that of a network of 20 equal convs minus that of a network of 4, divided by 16;
both are medians of 30 runs.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

SIZES = (
    "64x4x224", "64x8x224", "64x28x224", "64x112x112", "64x224x224", "256x56x56", "512x28x28",
    "64x14x14",
)  # fmt: skip
SHORT, LONG, RUNS = 4, 20, 30


def main() -> None:
    for size in sys.argv[1:] or SIZES:
        channels, rows, columns = (int(part) for part in size.split("x"))
        outputs = channels * rows * columns
        for groups in (channels, 1):
            shape = (channels, rows, columns)
            several = seconds(shape, groups, LONG) - seconds(shape, groups, SHORT)
            once = several / (LONG - SHORT)
            kind, each = ("depthwise", 9) if groups > 1 else ("pointwise", channels)
            print(
                f"{size:12} {kind} {1e3 * once:7.3f} ms {outputs / once / 1e9:6.2f} G outputs/s "
                f"{outputs * each / once / 1e9:6.1f} GMAC/s",
                flush=True,
            )


def seconds(shape: tuple[int, int, int], groups: int, count: int) -> float:
    """The seconds of a network of so many convs of one geometry."""
    channels, rows, columns = shape
    kernel = 3 if groups > 1 else 1
    draw = np.random.default_rng(0).standard_normal
    weight = draw((channels, channels // groups, kernel, kernel)).astype(np.float32)
    weight /= np.sqrt(weight[0].size)
    nodes = [
        helper.make_node(
            "Conv", [f"v{at}", f"w{at}"], [f"v{at + 1}"], group=groups, pads=[kernel // 2] * 4
        )
        for at in range(count)
    ]
    nodes.append(helper.make_node("GlobalAveragePool", [f"v{count}"], ["y"]))
    sizes = [1, channels, rows, columns]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("v0", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, f"w{at}") for at in range(count)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {"v0": draw(sizes).astype(np.float32)}
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    main()
