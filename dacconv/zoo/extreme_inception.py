"""Xception (Chollet, arXiv 1610.02357), with the parameter names of timm's legacy_xception."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class SeparableConv(nn.Module):
    """A 3x3 depthwise conv, then a pointwise one, with nothing between them (section 3)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h, w)``."""
        return self.pointwise(self.conv1(x))


class Block(nn.Module):
    """Separable convs with BatchNorm, each after a ReLU, and a shortcut (figure 5)."""

    def __init__(self, widths: tuple[int, ...], stride: int, *, starts_with_relu: bool = True):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.ReLU(), SeparableConv(inputs, outputs), nn.BatchNorm2d(outputs)]
        layers = layers if starts_with_relu else layers[1:]
        self.skip: nn.Conv2d | None = None
        if stride > 1:
            layers.append(nn.MaxPool2d(3, stride, 1))
            self.skip = nn.Conv2d(widths[0], widths[-1], 1, stride, bias=False)
            self.skipbn = nn.BatchNorm2d(widths[-1])
        self.rep = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``widths[0]`` channels to ``widths[-1]``."""
        shortcut = x if self.skip is None else self.skipbn(self.skip(x))
        return self.rep(x) + shortcut


class Xception(nn.Module):
    """Entry, middle and exit flow and a linear head (figure 5). ``width`` 8 is the paper's."""

    def __init__(self, classes: int = 1000, channels: int = 3, width: int = 8) -> None:
        super().__init__()
        w = width
        self.conv1 = nn.Conv2d(channels, 4 * w, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(4 * w)
        self.conv2 = nn.Conv2d(4 * w, 8 * w, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(8 * w)
        self.block1 = Block((8 * w, 16 * w, 16 * w), 2, starts_with_relu=False)
        self.block2 = Block((16 * w, 32 * w, 32 * w), 2)
        self.block3 = Block((32 * w, 91 * w, 91 * w), 2)
        for number in range(4, 12):
            self.add_module(f"block{number}", Block((91 * w,) * 4, 1))
        self.block12 = Block((91 * w, 91 * w, 128 * w), 2)
        self.conv3 = SeparableConv(128 * w, 192 * w)
        self.bn3 = nn.BatchNorm2d(192 * w)
        self.conv4 = SeparableConv(192 * w, 256 * w)
        self.bn4 = nn.BatchNorm2d(256 * w)
        self.fc = nn.Linear(256 * w, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)``; the paper's input is 299x299."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        for number in range(1, 13):
            x = getattr(self, f"block{number}")(x)
        x = F.relu(self.bn3(self.conv3(x)))
        x = F.relu(self.bn4(self.conv4(x)))
        return self.fc(x.mean((2, 3)))
