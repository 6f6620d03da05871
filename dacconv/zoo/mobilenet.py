"""MobileNet v1 (arXiv 1704.04861) and v2 (arXiv 1801.04381).

The parameter names of v2 are those of torchvision; those of v1 are our own.
"""

from __future__ import annotations

from torch import Tensor, nn

from dacconv.zoo.layers import conv_bn, divisible

V1_BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip
"""Outputs and stride of the thirteen depthwise separable convs (table 1)."""
V2_BLOCKS = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
    (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
"""Expansion, outputs, repetitions and stride of the inverted residuals (table 2)."""


class MobileNetV1(nn.Module):
    """Depthwise separable convs, each conv with BatchNorm and ReLU.

    ``width`` is the width multiplier (section 3.3): every number of channels times it, rounded
    down.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        inputs = max(int(32 * width), 1)
        layers = [conv_bn(channels, inputs, 3, 2)]
        for base, stride in V1_BLOCKS:
            outputs = max(int(base * width), 1)
            depthwise = conv_bn(inputs, inputs, 3, stride, groups=inputs)
            layers.append(nn.Sequential(depthwise, conv_bn(inputs, outputs)))
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        return self.classifier(self.features(x).mean((2, 3)))


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise conv and linear 1x1 projection (section 3.4)."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [conv_bn(inputs, hidden, activation=nn.ReLU6)] if expansion > 1 else []
        layers.append(conv_bn(hidden, hidden, 3, stride, groups=hidden, activation=nn.ReLU6))
        projection = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.conv = nn.Sequential(*layers, projection, nn.BatchNorm2d(outputs))
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        return x + self.conv(x) if self.is_residual else self.conv(x)


class MobileNetV2(nn.Module):
    """Inverted residuals with linear bottlenecks; ``width`` rounds to multiples of 8."""

    def __init__(self, classes: int = 1000, channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        inputs, last = divisible(32 * width), divisible(1280 * max(width, 1.0))
        layers: list[nn.Module] = [conv_bn(channels, inputs, 3, 2, activation=nn.ReLU6)]
        for expansion, base, repetitions, stride in V2_BLOCKS:
            outputs = divisible(base * width)
            for index in range(repetitions):
                first = stride if index == 0 else 1
                layers.append(InvertedResidual(inputs, outputs, expansion, first))
                inputs = outputs
        layers.append(conv_bn(inputs, last, activation=nn.ReLU6))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        return self.classifier(self.features(x).mean((2, 3)))
