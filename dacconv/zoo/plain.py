"""Networks that are one row of convs: VGG (arXiv 1409.1556) and DnCNN (arXiv 1608.03981)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

CONVS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Depth -> the number of 3x3 convs in each of the five stages (table 1)."""


def _trunk(depth: int, width: int, channels: int, *, batch_norm: bool) -> nn.Sequential:
    """The convs with ReLU and the 2x2 max pools, numbered as in torchvision."""
    layers: list[nn.Module] = []
    for stage, convs in enumerate(CONVS[depth]):
        outputs = width * min(2**stage, 8)
        for _ in range(convs):
            layers.append(nn.Conv2d(channels, outputs, 3, 1, 1))
            layers += [nn.BatchNorm2d(outputs)] if batch_norm else []
            layers.append(nn.ReLU())
            channels = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """Stages of 3x3 convs, then three linear layers on 7x7 positions."""

    def __init__(
        self,
        depth: int,
        *,
        classes: int = 1000,
        channels: int = 3,
        width: int = 64,
        hidden: int = 4096,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.features = _trunk(depth, width, channels, batch_norm=batch_norm)
        self.classifier = nn.Sequential(
            nn.Linear(8 * width * 7 * 7, hidden), nn.ReLU(), nn.Dropout(),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(),
            nn.Linear(hidden, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)``; other inputs than 224x224 are pooled to 7x7 positions."""
        x = F.adaptive_avg_pool2d(self.features(x), 7)
        return self.classifier(x.flatten(1))


def vgg11(classes: int = 1000, channels: int = 3, width: int = 64, hidden: int = 4096) -> VGG:
    """VGG-11; ``width`` is that of the first stage, ``hidden`` that of the linear layers."""
    return VGG(11, classes=classes, channels=channels, width=width, hidden=hidden)


def vgg13(classes: int = 1000, channels: int = 3, width: int = 64, hidden: int = 4096) -> VGG:
    """VGG-13."""
    return VGG(13, classes=classes, channels=channels, width=width, hidden=hidden)


def vgg16(classes: int = 1000, channels: int = 3, width: int = 64, hidden: int = 4096) -> VGG:
    """VGG-16."""
    return VGG(16, classes=classes, channels=channels, width=width, hidden=hidden)


def vgg19(classes: int = 1000, channels: int = 3, width: int = 64, hidden: int = 4096) -> VGG:
    """VGG-19."""
    return VGG(19, classes=classes, channels=channels, width=width, hidden=hidden)


def vgg11_bn(classes: int = 1000, channels: int = 3, width: int = 64, hidden: int = 4096) -> VGG:
    """VGG-11 with BatchNorm."""
    return VGG(11, classes=classes, channels=channels, width=width, hidden=hidden, batch_norm=True)


def vgg13_bn(classes: int = 1000, channels: int = 3, width: int = 64, hidden: int = 4096) -> VGG:
    """VGG-13 with BatchNorm."""
    return VGG(13, classes=classes, channels=channels, width=width, hidden=hidden, batch_norm=True)


def vgg16_bn(classes: int = 1000, channels: int = 3, width: int = 64, hidden: int = 4096) -> VGG:
    """VGG-16 with BatchNorm."""
    return VGG(16, classes=classes, channels=channels, width=width, hidden=hidden, batch_norm=True)


def vgg19_bn(classes: int = 1000, channels: int = 3, width: int = 64, hidden: int = 4096) -> VGG:
    """VGG-19 with BatchNorm."""
    return VGG(19, classes=classes, channels=channels, width=width, hidden=hidden, batch_norm=True)


class VGG16Probe(nn.Module):
    """VGG-16's convs with a linear head on the spatial mean.

    Input ``(batch, 3, h, w)``: BGR in 0..255 minus (103.939, 116.779, 123.68).
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = _trunk(16, 64, 3, batch_norm=False)
        self.fc = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        return self.fc(self.features(x).mean((2, 3)))


class DnCNN(nn.Module):
    """DnCNN with its BatchNorm folded: the noise in a grey image.

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
