"""ResNet (He et al., arXiv 1512.03385), with the parameter names of torchvision."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convs and a shortcut (figure 5, left)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, stride_in_1x1: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        grows = stride != 1 or inputs != width
        self.downsample = _downsample(inputs, width, stride) if grows else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, width, h / stride, w / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convs and a shortcut (figure 5, right).

    The stride is that of the 3x3 conv, as in torchvision (known as v1.5), or with
    ``stride_in_1x1`` of the first conv, as in the paper.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, stride_in_1x1: bool) -> None:
        super().__init__()
        outputs = 4 * width
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        grows = stride != 1 or inputs != outputs
        self.downsample = _downsample(inputs, outputs, stride) if grows else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, 4 width, h / stride, w / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A 7x7 stem, four stages of residual blocks and a linear head on the spatial mean."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        *,
        classes: int = 1000,
        channels: int = 3,
        width: int = 64,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for number, depth in enumerate(depths, start=1):
            stage = nn.Sequential()
            for index in range(depth):
                stride = 2 if index == 0 and number > 1 else 1
                stage.append(block(inputs, width, stride, stride_in_1x1))
                inputs = width * block.expansion
            self.add_module(f"layer{number}", stage)
            width *= 2
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, 2, 1)
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        return self.fc(x.mean((2, 3)))


def resnet18(classes: int = 1000, channels: int = 3, width: int = 64) -> ResNet:
    """ResNet-18; ``width`` is the number of channels of the first stage."""
    return ResNet(BasicBlock, (2, 2, 2, 2), classes=classes, channels=channels, width=width)


def resnet34(classes: int = 1000, channels: int = 3, width: int = 64) -> ResNet:
    """ResNet-34."""
    return ResNet(BasicBlock, (3, 4, 6, 3), classes=classes, channels=channels, width=width)


def resnet50(
    classes: int = 1000, channels: int = 3, width: int = 64, stride_in_1x1: bool = False
) -> ResNet:
    """ResNet-50, with the strides of torchvision unless ``stride_in_1x1``."""
    return ResNet(
        Bottleneck, (3, 4, 6, 3),
        classes=classes, channels=channels, width=width, stride_in_1x1=stride_in_1x1,
    )  # fmt: skip


def resnet101(
    classes: int = 1000, channels: int = 3, width: int = 64, stride_in_1x1: bool = False
) -> ResNet:
    """ResNet-101, with the strides of torchvision unless ``stride_in_1x1``."""
    return ResNet(
        Bottleneck, (3, 4, 23, 3),
        classes=classes, channels=channels, width=width, stride_in_1x1=stride_in_1x1,
    )  # fmt: skip


class SmallBlock(nn.Module):
    """Two 3x3 convs with BatchNorm and a shortcut without parameters (option A)."""

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
    """ResNet-20 for CIFAR-10 (section 4.2): 40,551,040 MACs at 32x32.

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
            SmallBlock(inputs, outputs, stride),
            SmallBlock(outputs, outputs),
            SmallBlock(outputs, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))
