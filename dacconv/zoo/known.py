"""How the state dict of a known network is told by its keys and shapes, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
WIDTHS = (1.0, 0.75, 0.5, 0.25, 0.35, 1.3, 1.4)
"""Width multipliers that are tried where rounding hides which one it was."""
STRIDES_UNKNOWN = (
    "the stride is taken to be in the 3x3 convs, as in torchvision; for a network with the paper's "
    "strides give --arch-arg stride_in_1x1=true as well"
)


@dataclass(frozen=True, slots=True)
class Network:
    """A network of the zoo, and what to read off the shapes of its state dict.

    ``reads`` maps an argument of its factory to a key, an axis of that tensor, and how many
    channels the argument 1 stands for. ``tried`` are further arguments, each of which may fit.
    ``size`` is the height and width of the images that it is mostly used on. ``torchvision`` is
    the factory in ``torchvision.models`` with the same keys. ``caveat`` is what the file does not
    show.
    """

    name: str
    reads: Mapping[str, tuple[str, int, int]]
    size: int = 224
    tried: Sequence[Mapping[str, Any]] = field(default_factory=lambda: ({},))
    torchvision: str = ""
    caveat: str = ""

    def arguments(self, shapes: Shapes) -> Iterator[dict[str, Any]]:
        """The arguments that may fit the shapes; none where a key is missing."""
        fitting: dict[str, Any] = {}
        for argument, (key, axis, unit) in self.reads.items():
            shape = shapes.get(key, ())
            if len(shape) <= axis:
                return
            size = shape[axis]
            whole = unit == 1 or self.name not in FRACTIONS
            fitting[argument] = size // unit if whole else size / unit
        for more in self.tried:
            yield fitting | dict(more)


FRACTIONS = ("mobilenet_v1", "shufflenet_v1")
"""The networks whose width need not be a whole number."""


def _resnet(name: str, caveat: str = "") -> Network:
    reads = {
        "classes": ("fc.weight", 0, 1),
        "channels": ("conv1.weight", 1, 1),
        "width": ("conv1.weight", 0, 1),
    }
    return Network(name, reads, torchvision=name, caveat=caveat)


def _vgg(name: str) -> Network:
    reads = {
        "classes": ("classifier.6.weight", 0, 1),
        "channels": ("features.0.weight", 1, 1),
        "width": ("features.0.weight", 0, 1),
        "hidden": ("classifier.0.weight", 0, 1),
    }
    return Network(name, reads, torchvision=name)


def _squeezenet(name: str) -> Network:
    reads = {
        "classes": ("classifier.1.weight", 0, 1),
        "channels": ("features.0.weight", 1, 1),
        "width": ("features.3.squeeze.weight", 0, 1),
    }
    return Network(name, reads, torchvision=name)


def _widths(**more: Any) -> tuple[dict[str, Any], ...]:
    return tuple({"width": width, **more} for width in WIDTHS)


NETWORKS: tuple[Network, ...] = (
    _resnet("resnet18"),
    _resnet("resnet34"),
    _resnet("resnet50", STRIDES_UNKNOWN),
    _resnet("resnet101", STRIDES_UNKNOWN),
    Network("resnet20_cifar", {"classes": ("linear.weight", 0, 1)}, 32),
    *(_vgg(f"vgg{depth}{norm}") for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    Network("vgg16_probe", {"classes": ("fc.weight", 0, 1)}),
    Network("dncnn", {"width": ("model.0.weight", 0, 1)}, 64, ({}, {"depth": 20})),
    _squeezenet("squeezenet1_0"),
    _squeezenet("squeezenet1_1"),
    Network("squeezenet1_1_keras", {"classes": ("conv10.weight", 0, 1)}),
    Network(
        "xception",
        {"classes": ("fc.weight", 0, 1), "channels": ("conv1.weight", 1, 1),
         "width": ("conv1.weight", 0, 4)},
        299,
    ),
    Network(
        "mobilenet_v1",
        {"classes": ("classifier.weight", 0, 1), "channels": ("features.0.0.weight", 1, 1),
         "width": ("features.0.0.weight", 0, 32)},
    ),
    Network(
        "mobilenet_v2",
        {"classes": ("classifier.1.weight", 0, 1), "channels": ("features.0.0.weight", 1, 1)},
        tried=_widths(),
        torchvision="mobilenet_v2",
    ),
    Network(
        "shufflenet_v1",
        {"classes": ("fc.weight", 0, 1), "channels": ("stem.0.weight", 1, 1),
         "width": ("stem.0.weight", 0, 24)},
        tried=tuple({"groups": groups} for groups in (3, 1, 2, 4, 8)),
    ),
    Network(
        "shufflenet_v2",
        {"classes": ("fc.weight", 0, 1), "channels": ("conv1.0.weight", 1, 1)},
        tried=tuple({"width": width} for width in (1.0, 0.5, 1.5, 2.0)),
        torchvision="shufflenet_v2_x1_0",
    ),
    Network(
        "ghostnet",
        {"classes": ("classifier.weight", 0, 1), "channels": ("conv_stem.weight", 1, 1)},
        tried=_widths(),
    ),
    Network(
        "densenet121",
        {"classes": ("classifier.weight", 0, 1), "channels": ("features.conv0.weight", 1, 1),
         "growth": ("features.conv0.weight", 0, 2)},
        torchvision="densenet121",
    ),
    Network(
        "efficientnet_lite0",
        {"classes": ("classifier.weight", 0, 1), "channels": ("conv_stem.weight", 1, 1)},
        tried=(*_widths(tensorflow=False), *_widths(tensorflow=True)),
    ),
    Network(
        "efficientnet_lite0_pytorch",
        {"classes": ("_fc.weight", 0, 1), "channels": ("_conv_stem.weight", 1, 1)},
        tried=_widths(),
    ),
    Network(
        "repvgg_a0",
        {"classes": ("linear.weight", 0, 1)},
        tried=(*_widths(deploy=False), *_widths(deploy=True)),
    ),
    Network(
        "unet",
        {"classes": ("outc.conv.weight", 0, 1),
         "channels": ("inc.double_conv.0.weight", 1, 1),
         "width": ("inc.double_conv.0.weight", 0, 1)},
        256,
    ),
)  # fmt: skip
"""The networks whose state dicts are recognised."""
