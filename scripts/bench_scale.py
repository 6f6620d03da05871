"""How converting grows with the size of an ONNX graph, as a Markdown table.

    .venv/bin/python scripts/bench_scale.py

Each row is a graph of one kind. The measure is CPU time with one thread: that of
``dacconv convert --rank 1 --no-verify`` (``dacconv fuse`` where there is no conv), and that of
loading the file with ``onnx.load``, saving it with ``onnx.save`` and opening it in ONNX Runtime.
Both are fresh processes, so both include the start of Python.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

CHANNELS = 8
REFERENCE = """
import sys, onnx, onnxruntime
onnx.save(onnx.load(sys.argv[1]), sys.argv[2])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


class Builder:
    """A graph that grows node by node."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(0)

    def node(self, operator: str, *inputs: str, **attributes: object) -> str:
        name = f"{operator.lower()}{len(self.nodes)}"
        output = f"{name}_out"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def weight(self, name: str, values: np.ndarray) -> str:
        self.weights.setdefault(name, values.astype(np.float32))
        return name

    def conv_norm(self, value: str) -> str:
        kernel = self.rng.normal(size=(CHANNELS, CHANNELS, 3, 3)) * 0.1
        weight = self.weight(f"w{len(self.nodes)}", kernel)
        value = self.node("Conv", value, weight, pads=[1] * 4)
        return self.node("BatchNormalization", value, *[self.weight("ones", np.ones(CHANNELS))] * 4)

    def model(self, output: str) -> ModelProto:
        shape = [1, CHANNELS, 8, 8]
        info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", output)]
        weights = [numpy_helper.from_array(values, name) for name, values in self.weights.items()]
        graph = helper.make_graph(self.nodes, "scale", info[:1], info[1:], weights)
        opset = helper.make_opsetid("", 17)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def loose_pairs(build: Builder, count: int) -> str:
    value, vector = "x", np.ones((CHANNELS, 1, 1))
    for _ in range(count):
        value = build.node("Mul", value, build.weight("scale", 0.999 * vector))
        value = build.node("Add", value, build.weight("shift", 0.01 * vector))
    return value


def linear_residual_blocks(build: Builder, count: int) -> str:
    value = "x"
    for _ in range(count):
        value = build.node("Add", build.conv_norm(value), value)
    return value


def layers(build: Builder, count: int) -> str:
    value = "x"
    for _ in range(count):
        value = build.node("Relu", build.conv_norm(value))
    return value


def parallel_branches(build: Builder, count: int) -> str:
    total = build.conv_norm("x")
    for _ in range(count - 1):
        total = build.node("Add", total, build.conv_norm("x"))
    return total


def sum_of_activations(build: Builder, count: int) -> str:
    total = build.node("Relu", build.conv_norm("x"))
    for _ in range(count - 1):
        total = build.node("Add", total, build.node("Relu", build.conv_norm("x")))
    return total


KINDS: dict[str, tuple[Callable[[Builder, int], str], str, int]] = {
    "Mul-Add pairs": (loose_pairs, "fuse", 10_000),
    "conv + BatchNorm + add blocks": (linear_residual_blocks, "convert", 3_000),
    "conv + BatchNorm + ReLU": (layers, "convert", 3_000),
    "parallel branches": (parallel_branches, "convert", 3_000),
    "a sum of activations": (sum_of_activations, "convert", 3_000),
}


def cpu_seconds(*command: str | Path) -> float:
    """The CPU time of a process, which must succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([str(each) for each in command], check=True, capture_output=True,
                   env=environment)  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def row(name: str, share: float, folder: Path) -> str:
    make, command, most = KINDS[name]
    builder = Builder()
    model = builder.model(make(builder, max(1, round(most * share))))
    source, target = folder / "model.onnx", folder / "other.onnx"
    onnx.save(model, source)
    reference = cpu_seconds(sys.executable, "-c", REFERENCE, source, target)
    program = Path(sys.executable).with_name("dacconv")
    options = ["--rank", "1", "--no-verify"] if command == "convert" else ["--no-verify"]
    seconds = cpu_seconds(program, command, source, "-o", target, "--force", *options)
    return (
        f"| {name} | {len(model.graph.node):,} | {reference:.1f} s | {seconds:.1f} s "
        f"| {seconds / reference:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 1.0],
                        help="the sizes, as shares of the largest graph of each kind")  # fmt: skip
    given = parser.parse_args()
    print("| graph | nodes | load + save + session | dacconv | ratio |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name in KINDS:
            for share in given.shares:
                print(row(name, share, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
