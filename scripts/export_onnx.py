"""Write ONNX by hand from the state dicts of the networks here: BatchNorm stays BatchNorm.

    .venv/bin/python scripts/export_onnx.py {resnet20,vgg16,dncnn} CHECKPOINT OUT

torch's own exporter needs onnxscript and folds BatchNorm away. Nodes are named like the
modules, weights like the entries of the state dict; the batch is symbolic. The file is
compared with torch before the script ends.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from torch import Tensor, nn

State = Mapping[str, np.ndarray]
OPSET, IR = 17, 8
VGG16_CONVS = (0, 2, -1, 5, 7, -1, 10, 12, 14, -1, 17, 19, 21, -1, 24, 26, 28, -1)
"""Positions of VGG16's convs in ``features``; -1 is a 2x2 max pool."""


class Writer:
    """Collects nodes and weights; every method appends one node and returns its output."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}

    def weight(self, name: str, value: np.ndarray | None = None) -> str:
        array = self.state[name] if value is None else value
        self.weights[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def op(self, kind: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = f"{name}.output"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def conv(self, name: str, x: str, *, stride: int = 1) -> str:
        inputs = [x, self.weight(f"{name}.weight")]
        if f"{name}.bias" in self.state:
            inputs.append(self.weight(f"{name}.bias"))
        kernel = self.state[f"{name}.weight"].shape[2:]
        return self.op(
            "Conv",
            name,
            inputs,
            kernel_shape=kernel,
            pads=[size // 2 for size in kernel] * 2,
            strides=[stride, stride],
            dilations=[1, 1],
            group=1,
        )

    def batchnorm(self, name: str, x: str) -> str:
        parts = ("weight", "bias", "running_mean", "running_var")
        inputs = [x, *(self.weight(f"{name}.{part}") for part in parts)]
        return self.op("BatchNormalization", name, inputs, epsilon=1e-5)

    def relu(self, name: str, x: str) -> str:
        return self.op("Relu", name, [x])

    def pool(self, name: str, x: str) -> str:
        return self.op("MaxPool", name, [x], kernel_shape=[2, 2], strides=[2, 2])

    def head(self, name: str, x: str) -> str:
        x = self.op("GlobalAveragePool", "pool", [x])
        x = self.op("Flatten", "flatten", [x], axis=1)
        inputs = [x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        return self.op("Gemm", name, inputs, transB=1)

    def model(self, title: str, shape: Sequence[int | str], output: Sequence[int | str]) -> Any:
        """The finished model: input ``image`` of ``shape``, the last node's value ``output``."""
        name = "output" if len(output) == 4 else "logits"
        self.nodes[-1].output[0] = name
        graph = helper.make_graph(
            self.nodes,
            title,
            [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, output)],
            list(self.weights.values()),
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def fashion(state: State) -> onnx.ModelProto:
    """tests/assets/fashion_net.py:FashionNet."""
    write = Writer(state)
    x = "image"
    for block in ("block1", "block2", "block3"):
        for i in (1, 2):
            x = write.batchnorm(f"{block}.bn{i}", write.conv(f"{block}.conv{i}", x))
            x = write.relu(f"{block}.relu{i}", x)
        if block != "block3":
            x = write.pool(f"{block}.pool", x)
    write.head("head", x)
    return write.model("fashion", ["batch", 1, 28, 28], ["batch", 10])


def resnet20(state: State) -> onnx.ModelProto:
    """scripts/archs.py:ResNet20."""
    write = Writer(state)
    x = write.relu("relu1", write.batchnorm("bn1", write.conv("conv1", "image")))
    for stage in (1, 2, 3):
        for i in range(3):
            block = f"layer{stage}.{i}"
            stride = 2 if stage > 1 and i == 0 else 1
            y = write.batchnorm(f"{block}.bn1", write.conv(f"{block}.conv1", x, stride=stride))
            y = write.conv(f"{block}.conv2", write.relu(f"{block}.relu1", y))
            y = write.batchnorm(f"{block}.bn2", y)
            if stride == 2:
                x = shortcut(write, block, x, extra=state[f"{block}.bn1.weight"].size // 4)
            x = write.relu(f"{block}.relu2", write.op("Add", f"{block}.add", [y, x]))
    write.head("linear", x)
    return write.model("resnet20", ["batch", 3, 32, 32], ["batch", 10])


def shortcut(write: Writer, block: str, x: str, *, extra: int) -> str:
    """Every second pixel, with ``extra`` zero channels before and after."""
    values = {"starts": [0, 0], "ends": [2**31 - 1] * 2, "axes": [2, 3], "steps": [2, 2]}
    inputs = [
        write.weight(f"{block}.slice.{key}", np.array(value, np.int64))
        for key, value in values.items()
    ]
    x = write.op("Slice", f"{block}.slice", [x, *inputs])
    pads = write.weight(f"{block}.pad.pads", np.array([0, extra, 0, 0] * 2, np.int64))
    return write.op("Pad", f"{block}.pad", [x, pads], mode="constant")


def vgg16(state: State) -> onnx.ModelProto:
    """scripts/archs.py:VGG16Probe at 224x224."""
    write = Writer(state)
    x = "image"
    for position, i in enumerate(VGG16_CONVS):
        if i < 0:
            x = write.pool(f"pool{VGG16_CONVS[: position + 1].count(-1)}", x)
        else:
            x = write.relu(f"features.{i + 1}", write.conv(f"features.{i}", x))
    write.head("fc", x)
    return write.model("vgg16", ["batch", 3, 224, 224], ["batch", 10])


def dncnn(state: State) -> onnx.ModelProto:
    """scripts/archs.py:DnCNN at any size."""
    write = Writer(state)
    x = "image"
    convs = sorted(int(key.split(".")[1]) for key in state if key.endswith(".weight"))
    for i in convs:
        x = write.conv(f"model.{i}", x)
        if i != convs[-1]:
            x = write.relu(f"model.{i + 1}", x)
    size: list[int | str] = ["batch", 1, "height", "width"]
    return write.model("dncnn", size, size)


NETS: dict[str, tuple[Callable[[State], onnx.ModelProto], str, tuple[int, ...]]] = {
    "resnet20": (resnet20, "ResNet20", (2, 3, 32, 32)),
    "vgg16": (vgg16, "VGG16Probe", (1, 3, 224, 224)),
    "dncnn": (dncnn, "DnCNN", (1, 1, 40, 48)),
}
"""Writer, torch class, and the input that the two are compared on."""


def arrays(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The state dict as numpy arrays."""
    return {name: value.detach().cpu().numpy() for name, value in state.items()}


def disagreement(model: onnx.ModelProto, module: nn.Module, shape: tuple[int, ...]) -> float:
    """Relative error (Frobenius) of the unoptimised ONNX graph against torch on noise."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(x)).numpy()
    (output,) = session.run(None, {"image": x})
    return float(np.linalg.norm(output - expected) / np.linalg.norm(expected))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("net", choices=NETS)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()

    import archs  # beside this file

    write, name, shape = NETS[options.net]
    state = archs.read_state(options.checkpoint)
    module = getattr(archs, name)()
    module.load_state_dict(state)
    model = write(arrays(state))
    error = disagreement(model, module, shape)
    if error > 1e-5:
        sys.exit(f"the ONNX graph disagrees with torch: relative error {error:.1e}")
    onnx.save(model, options.out)
    print(f"wrote {options.out}; relative error against torch {error:.1e}")


if __name__ == "__main__":
    main()
