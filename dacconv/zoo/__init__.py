"""Known networks in plain torch, untrained: for ``--arch``, for tests and for measurements.

    dacconv convert resnet18.pth --arch dacconv.zoo:resnet18 --arch-arg classes=10 --rank 2

The names of parameters are those of published checkpoints, so that their state dicts load
strictly; each file says whose. Nothing but torch is imported, and only when a network is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

PLACES = {
    "resnet18": "resnet:resnet18",
    "resnet34": "resnet:resnet34",
    "resnet50": "resnet:resnet50",
    "resnet101": "resnet:resnet101",
    "resnet20_cifar": "resnet:ResNet20",
    "vgg11": "plain:vgg11",
    "vgg13": "plain:vgg13",
    "vgg16": "plain:vgg16",
    "vgg19": "plain:vgg19",
    "vgg11_bn": "plain:vgg11_bn",
    "vgg13_bn": "plain:vgg13_bn",
    "vgg16_bn": "plain:vgg16_bn",
    "vgg19_bn": "plain:vgg19_bn",
    "vgg16_probe": "plain:VGG16Probe",
    "dncnn": "plain:DnCNN",
    "squeezenet1_0": "squeezenet:squeezenet1_0",
    "squeezenet1_1": "squeezenet:squeezenet1_1",
    "squeezenet1_1_keras": "squeezenet:SqueezeNet11",
    "xception": "extreme_inception:Xception",
    "mobilenet_v1": "mobilenet:MobileNetV1",
    "mobilenet_v2": "mobilenet:MobileNetV2",
    "shufflenet_v1": "shufflenet:ShuffleNetV1",
    "shufflenet_v2": "shufflenet:shufflenet_v2",
    "ghostnet": "ghost:GhostNet",
    "densenet121": "densenet:densenet121",
    "efficientnet_lite0": "efficientnet:EfficientNetLite0",
    "efficientnet_lite0_pytorch": "efficientnet:EfficientNetLitePyTorch",
    "repvgg_a0": "branches:repvgg_a0",
    "acnet": "branches:acnet",
    "dbbnet": "branches:dbbnet",
    "unet": "dense_outputs:UNet",
    "detector": "dense_outputs:Detector",
}
"""Name of a network -> ``file:factory`` that makes it."""


def build(name: str, **arguments: Any) -> nn.Module:
    """The network of that name; KeyError for an unknown one."""
    file, _, factory = PLACES[name].partition(":")
    module = import_module(f"dacconv.zoo.{file}")
    net: nn.Module = getattr(module, factory)(**arguments)
    return net


def __getattr__(name: str) -> Any:
    """The factory of a network, imported when it is asked for."""
    if name not in PLACES:
        raise AttributeError(f"module 'dacconv.zoo' has no attribute {name!r}")
    file, _, factory = PLACES[name].partition(":")
    return getattr(import_module(f"dacconv.zoo.{file}"), factory)


def __dir__() -> list[str]:
    return [*globals(), *PLACES]
