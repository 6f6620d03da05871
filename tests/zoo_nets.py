"""The networks of ``dacconv.zoo`` so small that they are converted in a moment, in every format."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from dacconv import zoo

SMALL: dict[str, tuple[dict[str, object], int]] = {
    "resnet18": ({"width": 8}, 32),
    "resnet50": ({"width": 4}, 32),
    "vgg11_bn": ({"width": 2, "hidden": 16}, 224),
    "squeezenet1_1": ({"width": 4}, 64),
    "xception": ({"width": 1}, 64),
    "mobilenet_v1": ({"width": 0.25}, 32),
    "mobilenet_v2": ({"width": 0.25}, 32),
    "shufflenet_v1": ({"width": 0.5}, 32),
    "shufflenet_v2": ({"width": 0.5}, 32),
    "ghostnet": ({"width": 0.25}, 32),
    "densenet121": ({"growth": 2}, 32),
    "efficientnet_lite0_pytorch": ({"width": 0.25}, 32),
    "repvgg_a0": ({"width": 0.125}, 32),
    "acnet": ({"width": 4}, 32),
    "dbbnet": ({"width": 4}, 32),
    "unet": ({"width": 4}, 32),
    "detector": ({"width": 4}, 64),
}
"""Arguments and the size of the images, by the name of the network."""


def small(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network in eval mode with BatchNorm statistics that matter, and an image."""
    arguments, size = SMALL[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        classes = {} if name in ("unet", "detector") else {"classes": 7}
        net = zoo.build(name, **arguments, **classes).eval()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(module.weight, 0.7, 1.3)
                nn.init.normal_(module.bias, 0, 0.1)
        return net, torch.randn(1, 3, size, size)


def write(name: str, folder: Path, kind: str) -> Path:
    """The network as a file: ``pt`` (a state dict), ``pt2``, ``onnx`` or ``dynamo`` (ONNX too)."""
    net, image = small(name)
    path = folder / f"{name}.{'dynamo.onnx' if kind == 'dynamo' else kind}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn of themselves
        if kind == "pt":
            torch.save(net.state_dict(), path)
        elif kind == "pt2":
            torch.export.save(torch.export.export(net, (image,)), path)
        elif kind == "onnx":
            torch.onnx.export(
                net, (image,), path, dynamo=False, do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE,
            )  # fmt: skip
        else:
            torch.onnx.export(net, (image,), path, dynamo=True, verbose=False)
    return path
