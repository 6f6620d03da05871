"""Networks whose first layers can be run in strips of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dacconv.models.onnx_model import OnnxModel
from tests.models.onnx_nets import model, node, opened, weights

SIDE = 24


class Net:
    """A graph that grows at its end: the value ``last``, which has ``channels``."""

    def __init__(self, channels: int = 3) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.last, self.channels = "x", channels

    def add(self, op: str, *more: str, source: str = "", **attributes: Any) -> str:
        result = f"v{len(self.nodes)}"
        inputs = [source or self.last, *more]
        self.nodes.append(node(op, inputs, [result], name=f"n{len(self.nodes)}", **attributes))
        self.last = result
        return result

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def conv(self, out: int, kernel: tuple[int, int] = (3, 3), **attributes: Any) -> str:
        groups = attributes.get("group", 1)
        shape = (out, self.channels // groups, *kernel)
        given = [self.constant(weights(*shape, seed=len(self.nodes)))]
        if len(self.nodes) % 2:
            given.append(self.constant(weights(out)))
        self.channels = out
        return self.add("Conv", *given, **attributes)

    def open(self, folder: Path, shape: Any = (1, 3, SIDE, SIDE), **options: Any) -> OnnxModel:
        taken = options.pop("taken", None)
        self.add("Identity")
        self.nodes[-1].output[0] = "y"
        proto = model(self.nodes, self.constants, inputs={"x": shape}, **options)
        return opened(proto, folder, taken) if taken else opened(proto, folder)


def vgg() -> Net:
    """Two convs and a pooling: what strips are for."""
    net = Net()
    for out in (8, 6):
        net.conv(out, pads=[1] * 4)
        net.add("Relu")
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    net.conv(4, pads=[1] * 4)
    return net
