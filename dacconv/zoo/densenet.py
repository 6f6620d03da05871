"""DenseNet (Huang et al., arXiv 1608.06993), with the parameter names of torchvision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 1x1 conv, BatchNorm, ReLU, 3x3 conv; its input is put before its output."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``inputs`` channels to ``inputs + growth``."""
        y = self.conv1(F.relu(self.norm1(x)))
        y = self.conv2(F.relu(self.norm2(y)))
        return torch.cat([x, y], 1)


class DenseNet(nn.Module):
    """Dense blocks with a halving transition between two of them, and a linear head (table 1)."""

    def __init__(
        self, depths: tuple[int, ...], growth: int, stem: int, classes: int, channels: int
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(channels, stem, 7, 2, 3, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(stem))
        self.features.add_module("relu0", nn.ReLU())
        self.features.add_module("pool0", nn.MaxPool2d(3, 2, 1))
        inputs = stem
        for number, depth in enumerate(depths, start=1):
            block = nn.Sequential()
            for index in range(1, depth + 1):
                block.add_module(f"denselayer{index}", DenseLayer(inputs, growth))
                inputs += growth
            self.features.add_module(f"denseblock{number}", block)
            if number < len(depths):
                transition = nn.Sequential()
                transition.add_module("norm", nn.BatchNorm2d(inputs))
                transition.add_module("relu", nn.ReLU())
                transition.add_module("conv", nn.Conv2d(inputs, inputs // 2, 1, bias=False))
                transition.add_module("pool", nn.AvgPool2d(2))
                self.features.add_module(f"transition{number}", transition)
                inputs //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(inputs))
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        return self.classifier(F.relu(self.features(x)).mean((2, 3)))


def densenet121(classes: int = 1000, channels: int = 3, growth: int = 32) -> DenseNet:
    """DenseNet-121; ``growth`` is the number of channels that every layer adds."""
    return DenseNet((6, 12, 24, 16), growth, 2 * growth, classes, channels)
