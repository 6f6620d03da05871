"""SqueezeNet (Iandola et al., arXiv 1602.07360), with the parameter names of torchvision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Fire(nn.Module):
    """A 1x1 conv to few channels, then 1x1 and 3x3 convs side by side (section 3.2)."""

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``inputs`` channels to ``2 expand``; the 1x1 convs come first."""
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """A conv, eight Fire modules between three max pools, and a 1x1 conv to the classes."""

    def __init__(
        self, stem: nn.Conv2d, pools_after: tuple[int, int], classes: int, width: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [stem, nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)]
        inputs = stem.out_channels
        for number, squeeze in enumerate((1, 1, 2, 2, 3, 3, 4, 4), start=2):
            layers.append(Fire(inputs, squeeze * width, 4 * squeeze * width))
            inputs = 8 * squeeze * width
            if number in pools_after:
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        head = nn.Conv2d(inputs, classes, 1)
        self.classifier = nn.Sequential(nn.Dropout(), head, nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        return self.classifier(self.features(x)).flatten(1)


def squeezenet1_0(classes: int = 1000, channels: int = 3, width: int = 16) -> SqueezeNet:
    """SqueezeNet 1.0 (table 1); ``width`` is the number of squeeze channels of fire2."""
    return SqueezeNet(nn.Conv2d(channels, 6 * width, 7, 2), (4, 8), classes, width)


def squeezenet1_1(classes: int = 1000, channels: int = 3, width: int = 16) -> SqueezeNet:
    """SqueezeNet 1.1: a 3x3 stem, and the pools two Fire modules earlier."""
    return SqueezeNet(nn.Conv2d(channels, 4 * width, 3, 2), (3, 5), classes, width)


class KerasFire(nn.Module):
    """Fire with the layer names of the Keras files."""

    def __init__(self, inputs: int, squeeze: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(inputs, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, 4 * squeeze, 1)
        self.expand3x3 = nn.Conv2d(squeeze, 4 * squeeze, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``inputs`` channels to ``8 squeeze``; the 1x1 convs come first."""
        x = self.squeeze1x1(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


class SqueezeNet11(nn.Module):
    """SqueezeNet 1.1 with the layer names of the Keras files; its pools round down.

    Input ``(batch, 3, 224, 224)``: BGR in 0..255 minus (103.939, 116.779, 123.68).
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        inputs = 64
        for number, squeeze in enumerate((16, 16, 32, 32, 48, 48, 64, 64), start=2):
            self.add_module(f"fire{number}", KerasFire(inputs, squeeze))
            inputs = 8 * squeeze
        self.conv10 = nn.Conv2d(512, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(batch, classes)``, none below zero."""
        x = F.max_pool2d(self.conv1(x).relu(), 3, 2)
        for number in range(2, 10):
            x = getattr(self, f"fire{number}")(x)
            if number in (3, 5):
                x = F.max_pool2d(x, 3, 2)
        return self.conv10(x).relu().mean((2, 3))
