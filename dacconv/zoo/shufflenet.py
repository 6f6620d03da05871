"""ShuffleNet v1 (arXiv 1707.01083) and v2 (arXiv 1807.11164).

The parameter names of v2 are those of torchvision; those of v1 are our own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dacconv.zoo.layers import channel_shuffle, conv_bn

V1_WIDTHS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
"""Groups -> output channels of stage 2 (table 1)."""
V2_WIDTHS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
"""Width -> output channels of stages 2 to 4 and of conv5 (table 5)."""
REPETITIONS = (4, 8, 4)


class UnitV1(nn.Module):
    """Grouped 1x1 conv, channel shuffle, 3x3 depthwise conv, grouped 1x1 conv (figure 2).

    With stride 2 the shortcut is an average pool whose channels are put before those of the unit.
    """

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int, first: bool) -> None:
        super().__init__()
        self.groups, self.stride = groups, stride
        hidden, new = outputs // 4, outputs - inputs if stride == 2 else outputs
        self.compress = conv_bn(inputs, hidden, groups=1 if first else groups)
        self.depthwise = conv_bn(hidden, hidden, 3, stride, groups=hidden, activation=None)
        self.expand = conv_bn(hidden, new, groups=groups, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        y = channel_shuffle(self.compress(x), self.groups)
        y = self.expand(self.depthwise(y))
        if self.stride == 2:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1))
        return F.relu(x + y)


class ShuffleNetV1(nn.Module):
    """A 3x3 stem, three stages of units and a linear head (table 1); ``width`` scales all."""

    def __init__(
        self, classes: int = 1000, channels: int = 3, groups: int = 3, width: float = 1.0
    ) -> None:
        super().__init__()
        inputs = int(24 * width)
        self.stem = conv_bn(channels, inputs, 3, 2)
        outputs = int(V1_WIDTHS[groups] * width)
        stages = nn.Sequential()
        for number, repetitions in enumerate(REPETITIONS):
            stage = nn.Sequential()
            for index in range(repetitions):
                first, stride = number == index == 0, 2 if index == 0 else 1
                stage.append(UnitV1(inputs, outputs, groups, stride, first))
                inputs = outputs
            stages.append(stage)
            outputs *= 2
        self.stages = stages
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        return self.fc(self.stages(x).mean((2, 3)))


class UnitV2(nn.Module):
    """Channel split, a branch of three convs, concatenation and channel shuffle (figure 3c, d)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half, self.stride = outputs // 2, stride
        self.branch1 = nn.Sequential()
        if stride == 2:
            depthwise = conv_bn(inputs, inputs, 3, 2, groups=inputs, activation=None)
            self.branch1 = nn.Sequential(*depthwise, *conv_bn(inputs, half))
        self.branch2 = nn.Sequential(
            *conv_bn(inputs if stride == 2 else half, half),
            *conv_bn(half, half, 3, stride, groups=half, activation=None),
            *conv_bn(half, half),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        if self.stride == 2:
            parts = [self.branch1(x), self.branch2(x)]
        else:
            left, right = x.chunk(2, 1)
            parts = [left, self.branch2(right)]
        return channel_shuffle(torch.cat(parts, 1), 2)


class ShuffleNetV2(nn.Module):
    """A 3x3 stem, three stages of units, a 1x1 conv and a linear head (table 5)."""

    def __init__(
        self,
        classes: int = 1000,
        channels: int = 3,
        widths: tuple[int, ...] = V2_WIDTHS[1.0],
        stem: int = 24,
    ) -> None:
        super().__init__()
        self.conv1 = conv_bn(channels, stem, 3, 2)
        inputs = stem
        for number, (repetitions, outputs) in enumerate(zip(REPETITIONS, widths, strict=False)):
            stage = nn.Sequential()
            for index in range(repetitions):
                stage.append(UnitV2(inputs, outputs, 2 if index == 0 else 1))
                inputs = outputs
            self.add_module(f"stage{number + 2}", stage)
        self.conv5 = conv_bn(inputs, widths[3])
        self.fc = nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        x = F.max_pool2d(self.conv1(x), 3, 2, 1)
        for number in (2, 3, 4):
            x = getattr(self, f"stage{number}")(x)
        return self.fc(self.conv5(x).mean((2, 3)))


def shufflenet_v2(classes: int = 1000, channels: int = 3, width: float = 1.0) -> ShuffleNetV2:
    """ShuffleNet v2 of the paper's widths: 0.5, 1, 1.5 and 2."""
    return ShuffleNetV2(classes, channels, V2_WIDTHS[width])
