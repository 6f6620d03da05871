"""GhostNet (Han et al., arXiv 1911.11907), with the parameter names of timm's ghostnet_100."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dacconv.zoo.layers import conv_bn, divisible

STAGES = (
    ((3, 16, 16, 0, 1),),
    ((3, 48, 24, 0, 2),),
    ((3, 72, 24, 0, 1),),
    ((5, 72, 40, 1, 2),),
    ((5, 120, 40, 1, 1),),
    ((3, 240, 80, 0, 2),),
    ((3, 200, 80, 0, 1), (3, 184, 80, 0, 1), (3, 184, 80, 0, 1), (3, 480, 112, 1, 1),
     (3, 672, 112, 1, 1)),
    ((5, 672, 160, 1, 2),),
    ((5, 960, 160, 0, 1), (5, 960, 160, 1, 1), (5, 960, 160, 0, 1), (5, 960, 160, 1, 1)),
)  # fmt: skip
"""Kernel, expansion, outputs, squeeze-excite and stride of the bottlenecks (table 7)."""
LAST, HEAD = 960, 1280


class GhostModule(nn.Module):
    """Half of the outputs by a 1x1 conv, the others by a 3x3 depthwise conv of those (fig. 2)."""

    def __init__(self, inputs: int, outputs: int, activation: type[nn.Module] | None) -> None:
        super().__init__()
        half = -(-outputs // 2)
        self.outputs = outputs
        self.primary_conv = conv_bn(inputs, half, activation=activation)
        self.cheap_operation = conv_bn(half, half, 3, groups=half, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h, w)``."""
        primary = self.primary_conv(x)
        y = torch.cat([primary, self.cheap_operation(primary)], 1)
        return y if y.shape[1] == self.outputs else y[:, : self.outputs]


class SqueezeExcite(nn.Module):
    """Channels scaled by a hard sigmoid of their means (arXiv 1709.01507)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = divisible(channels / 4, 4)
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.conv_expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` times one factor for each channel."""
        mean = x.mean((2, 3), keepdim=True)
        return x * F.hardsigmoid(self.conv_expand(F.relu(self.conv_reduce(mean))))


class Bottleneck(nn.Module):
    """Two ghost modules, with a depthwise conv between them where the stride is 2 (figure 3)."""

    def __init__(self, inputs: int, hidden: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.ghost1 = GhostModule(inputs, hidden, nn.ReLU)
        self.strided = stride > 1
        if stride > 1:
            padding = kernel // 2
            self.conv_dw = nn.Conv2d(
                hidden, hidden, kernel, stride, padding, groups=hidden, bias=False
            )
            self.bn_dw = nn.BatchNorm2d(hidden)
        self.se: nn.Module | None = None
        self.ghost2 = GhostModule(hidden, outputs, None)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            depthwise = conv_bn(inputs, inputs, kernel, stride, groups=inputs, activation=None)
            self.shortcut = nn.Sequential(*depthwise, *conv_bn(inputs, outputs, activation=None))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        y = self.ghost1(x)
        if self.strided:
            y = self.bn_dw(self.conv_dw(y))
        if self.se is not None:
            y = self.se(y)
        return self.ghost2(y) + self.shortcut(x)


class _Head(nn.Module):
    """A 1x1 conv with BatchNorm and ReLU, named ``conv`` and ``bn1``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv(x)))


class GhostNet(nn.Module):
    """Ghost bottlenecks and a linear head; ``width`` rounds to multiples of 4."""

    def __init__(self, classes: int = 1000, channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        inputs = divisible(16 * width, 4)
        self.conv_stem = nn.Conv2d(channels, inputs, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.blocks = nn.Sequential()
        for settings in STAGES:
            stage = nn.Sequential()
            for kernel, expanded, base, excite, stride in settings:
                hidden, outputs = divisible(expanded * width, 4), divisible(base * width, 4)
                block = Bottleneck(inputs, hidden, outputs, kernel, stride)
                block.se = SqueezeExcite(hidden) if excite else None
                stage.append(block)
                inputs = outputs
            self.blocks.append(stage)
        last = divisible(LAST * width, 4)
        self.blocks.append(nn.Sequential(_Head(inputs, last)))
        self.conv_head = nn.Conv2d(last, HEAD, 1)
        self.classifier = nn.Linear(HEAD, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        x = self.blocks(F.relu(self.bn1(self.conv_stem(x))))
        x = F.relu(self.conv_head(x.mean((2, 3), keepdim=True)))
        return self.classifier(x.flatten(1))
