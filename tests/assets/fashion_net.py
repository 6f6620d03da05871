"""The network whose trained weights lie beside this file: a small VGG for Fashion-MNIST.

Six dense 3x3 convs without bias, each followed by its own BatchNorm and ReLU, in three blocks
with 2x2 max pooling between, then the spatial mean and a linear layer: 288,170 parameters and
29,128,448 MACs at 28x28. ``--arch tests/assets/fashion_net.py:FashionNet`` names it.

The input is ``(batch, 1, 28, 28)``, ``(pixel / 255 - MEAN) / STD``; the output is
``(batch, 10)`` logits.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = 0.2860, 0.3530
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class Block(nn.Module):
    """Two times conv, BatchNorm and ReLU, at one resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h, w)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))


class FashionNet(nn.Module):
    """The classifier; ``widths`` are the channels of the three blocks."""

    def __init__(self, widths: Sequence[int] = (32, 64, 128), classes: int = 10) -> None:
        super().__init__()
        first, second, third = widths
        self.block1 = Block(1, first)
        self.block2 = Block(first, second)
        self.block3 = Block(second, third)
        self.head = nn.Linear(third, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)`` of normalised images ``(batch, 1, h, w)``."""
        x = F.max_pool2d(self.block1(x), 2)
        x = F.max_pool2d(self.block2(x), 2)
        x = self.block3(x)
        return self.head(x.mean((2, 3)))
