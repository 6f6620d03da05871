"""A small network in every format, for the tests of whole commands."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

WIDTHS = (3, 16, 24, 32)


class SmallNet(nn.Module):
    """Three 3x3 convs with BatchNorm, a pointwise conv and a linear layer."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        for index, (inputs, outputs) in enumerate(pairwise(WIDTHS), 1):
            setattr(self, f"conv{index}", nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
            setattr(self, f"bn{index}", nn.BatchNorm2d(outputs))
        self.point = nn.Conv2d(32, 20, 1)
        self.fc = nn.Linear(20, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.conv3(x)))
        return self.fc(self.point(x).mean((2, 3)))


def trained() -> SmallNet:
    """The network with weights and BatchNorm statistics as training might leave them."""
    generator = torch.Generator().manual_seed(0)
    net = SmallNet().eval()
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                fan = max(1, value[0].numel()) if value.ndim > 1 else 1
                value.copy_(noise.abs() + 0.5 if "running_var" in name else noise / fan**0.5)
    return net


def onnx_model() -> onnx.ModelProto:
    """The same network as an ONNX graph with a free batch axis."""
    state = {k: v.numpy() for k, v in trained().state_dict().items() if v.ndim}
    nodes, value = [], "image"
    for i in (1, 2, 3):
        bn = [f"bn{i}.{p}" for p in ("weight", "bias", "running_mean", "running_var")]
        nodes += [
            helper.make_node(
                "Conv", [value, f"conv{i}.weight"], [f"c{i}"], f"conv{i}", pads=[1, 1, 1, 1]
            ),
            helper.make_node("BatchNormalization", [f"c{i}", *bn], [f"b{i}"], f"bn{i}"),
            helper.make_node("Relu", [f"b{i}"], [f"r{i}"], f"relu{i}"),
        ]
        value = f"r{i}"
    nodes += [
        helper.make_node("Conv", [value, "point.weight", "point.bias"], ["p"], "point"),
        helper.make_node("GlobalAveragePool", ["p"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["scores"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", 1, ["N", 3, 12, 12])],
        [helper.make_tensor_value_info("scores", 1, ["N", 7])],
        [numpy_helper.from_array(array, name) for name, array in state.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


def write_all(folder: Path) -> None:
    """``net.onnx``, ``net.pth`` and ``net.safetensors`` in ``folder``."""
    from safetensors.torch import save_file

    onnx.save(onnx_model(), folder / "net.onnx")
    torch.save(trained().state_dict(), folder / "net.pth")
    save_file(dict(trained().state_dict()), folder / "net.safetensors")


def images(count: int = 16) -> np.ndarray:
    """Seeded inputs of the network."""
    return np.random.default_rng(1).standard_normal((count, 3, 12, 12)).astype(np.float32)
