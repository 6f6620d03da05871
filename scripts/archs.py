"""The networks of published checkpoints that the measurements use, in plain torch.

    dacconv convert resnet20.th --arch scripts/archs.py:ResNet20 --input-shape 1,3,32,32 ...

Module names are those of the checkpoints, so their state dicts load strictly. Nothing but
torch is imported: ``--arch`` can read this file from anywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convs with BatchNorm and a shortcut without parameters (He et al. 2016, A)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.grown = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.grown:
            half = self.grown // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(y + x)


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR-10 (He et al. 2016, section 4.2): 40,551,040 MACs at 32x32.

    Input ``(batch, 3, 32, 32)``: RGB / 255, minus (.485, .456, .406), over (.229, .224, .225).
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            BasicBlock(inputs, outputs, stride),
            BasicBlock(outputs, outputs),
            BasicBlock(outputs, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


VGG16_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Output channels of VGG16's convs; 0 is a 2x2 max pool."""


class VGG16Probe(nn.Module):
    """VGG16's trunk (Simonyan and Zisserman 2015) with a linear head on the spatial mean.

    Input ``(batch, 3, h, w)``: BGR in 0..255 minus (103.939, 116.779, 123.68).
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in VGG16_WIDTHS:
            if width:
                layers += [nn.Conv2d(channels, width, 3, 1, 1), nn.ReLU()]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        return self.fc(self.features(x).mean((2, 3)))


class Fire(nn.Module):
    """1x1 conv to few channels, then 1x1 and 3x3 convs side by side (SqueezeNet, section 3.2)."""

    def __init__(self, inputs: int, squeeze: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(inputs, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, 4 * squeeze, 1)
        self.expand3x3 = nn.Conv2d(squeeze, 4 * squeeze, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze1x1(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


class SqueezeNet11(nn.Module):
    """SqueezeNet 1.1 (Iandola et al., arXiv 1602.07360), as converted from a Keras file."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        inputs = 64
        for number, squeeze in enumerate((16, 16, 32, 32, 48, 48, 64, 64), start=2):
            setattr(self, f"fire{number}", Fire(inputs, squeeze))
            inputs = 8 * squeeze
        self.conv10 = nn.Conv2d(512, 1000, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.conv1(x).relu(), 3, 2)
        for number in range(2, 10):
            x = getattr(self, f"fire{number}")(x)
            if number in (3, 5):
                x = nn.functional.max_pool2d(x, 3, 2)
        return self.conv10(x).relu().mean((2, 3))


class DnCNN(nn.Module):
    """DnCNN with its BatchNorm folded (Zhang et al. 2017): the noise in a grey image.

    Input and output ``(batch, 1, h, w)``, grey in 0..1; ``x - net(x)`` is the clean image.
    """

    def __init__(self, depth: int = 17, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 3, 1, 1), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, 1, 1), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.Conv2d(width, 1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The estimated noise."""
        return self.model(x)


def read_state(path: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint of one of these networks, without ``module.``."""
    held = torch.load(path, map_location="cpu", weights_only=True)
    held = held.get("state_dict", held)
    return {name.removeprefix("module."): value for name, value in held.items()}
