"""Networks whose parallel branches are one conv at inference: RepVGG, ACNet and DBB.

RepVGG (Ding et al., arXiv 2101.03697) has the parameter names of its authors' code; ACNet's blocks
(arXiv 1908.03930) and Diverse Branch Blocks (arXiv 2103.13425) too.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

A0_DEPTHS, A0_WIDTHS = (2, 4, 14, 1), (48, 96, 192, 1280)
"""RepVGG-A0: depths and widths of the four stages after the stem of 48 channels (table 2)."""


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    made = nn.Sequential()
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    made.add_module("conv", conv)
    made.add_module("bn", nn.BatchNorm2d(outputs))
    return made


class RepVGGBlock(nn.Module):
    """A 3x3 conv, a 1x1 conv and, where the shapes allow it, a BatchNorm, added (figure 2).

    With ``deploy`` the one 3x3 conv that they are at inference.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, deploy: bool) -> None:
        super().__init__()
        self.deploy = deploy
        if deploy:
            self.rbr_reparam = nn.Conv2d(inputs, outputs, 3, stride, 1)
            return
        keeps = inputs == outputs and stride == 1
        self.rbr_identity = nn.BatchNorm2d(inputs) if keeps else None
        self.rbr_dense = _conv_bn(inputs, outputs, 3, stride)
        self.rbr_1x1 = _conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        if self.deploy:
            return F.relu(self.rbr_reparam(x))
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        return F.relu(y if self.rbr_identity is None else y + self.rbr_identity(x))


class RepVGG(nn.Module):
    """A stem and four stages of RepVGG blocks, and a linear head."""

    def __init__(
        self,
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        *,
        classes: int = 1000,
        channels: int = 3,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        inputs = min(64, widths[0])
        self.stage0 = RepVGGBlock(channels, inputs, 2, deploy)
        for number, (depth, outputs) in enumerate(zip(depths, widths, strict=True), start=1):
            stage = nn.Sequential()
            for index in range(depth):
                stage.append(RepVGGBlock(inputs, outputs, 2 if index == 0 else 1, deploy))
                inputs = outputs
            self.add_module(f"stage{number}", stage)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        for number in range(5):
            x = getattr(self, f"stage{number}")(x)
        return self.linear(x.mean((2, 3)))


def repvgg_a0(
    classes: int = 1000, channels: int = 3, width: float = 1.0, deploy: bool = False
) -> RepVGG:
    """RepVGG-A0 as it is trained, or with ``deploy`` as it is at inference."""
    widths = tuple(int(base * width) for base in A0_WIDTHS)
    return RepVGG(A0_DEPTHS, widths, classes=classes, channels=channels, deploy=deploy)


class ACBlock(nn.Module):
    """Square, vertical and horizontal convs, each with its BatchNorm, added (ACNet, figure 1)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.square_conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.square_bn = nn.BatchNorm2d(outputs)
        self.ver_conv = nn.Conv2d(inputs, outputs, (3, 1), stride, (1, 0), bias=False)
        self.ver_bn = nn.BatchNorm2d(outputs)
        self.hor_conv = nn.Conv2d(inputs, outputs, (1, 3), stride, (0, 1), bias=False)
        self.hor_bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        y = self.square_bn(self.square_conv(x)) + self.ver_bn(self.ver_conv(x))
        return y + self.hor_bn(self.hor_conv(x))


class PaddedNorm(nn.Module):
    """BatchNorm, then a border of the value that it gives a zero (DBB, section 3.2)."""

    def __init__(self, channels: int, pad: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to ``(batch, channels, h + 2 pad, w + 2 pad)``."""
        y = F.pad(self.bn(x), [self.pad] * 4)
        mean, variance = cast(Tensor, self.bn.running_mean), cast(Tensor, self.bn.running_var)
        scale = self.bn.weight.detach() / (variance + self.bn.eps).sqrt()
        border = (self.bn.bias.detach() - mean * scale).reshape(1, -1, 1, 1)
        y[:, :, : self.pad] = border
        y[:, :, -self.pad :] = border
        y[:, :, :, : self.pad] = border
        y[:, :, :, -self.pad :] = border
        return y


class DBBlock(nn.Module):
    """A conv, a 1x1 conv, a 1x1 conv with an average pool, and 1x1 and 3x3 convs (DBB, fig. 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.dbb_origin = _conv_bn(inputs, outputs, 3, stride)
        self.dbb_1x1 = _conv_bn(inputs, outputs, 1, stride)
        self.dbb_avg = nn.Sequential()
        self.dbb_avg.add_module("conv", nn.Conv2d(inputs, outputs, 1, bias=False))
        self.dbb_avg.add_module("bn", PaddedNorm(outputs, 1))
        self.dbb_avg.add_module("avg", nn.AvgPool2d(3, stride))
        self.dbb_avg.add_module("avgbn", nn.BatchNorm2d(outputs))
        self.dbb_1x1_kxk = nn.Sequential()
        self.dbb_1x1_kxk.add_module("conv1", nn.Conv2d(inputs, inputs, 1, bias=False))
        self.dbb_1x1_kxk.add_module("bn1", PaddedNorm(inputs, 1))
        self.dbb_1x1_kxk.add_module("conv2", nn.Conv2d(inputs, outputs, 3, stride, bias=False))
        self.dbb_1x1_kxk.add_module("bn2", nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        y = self.dbb_origin(x) + self.dbb_1x1(x)
        return y + self.dbb_avg(x) + self.dbb_1x1_kxk(x)


def _small(
    block: type[ACBlock] | type[DBBlock], classes: int, channels: int, width: int
) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = channels
    for index, factor in enumerate((1, 1, 2, 2, 4, 4)):
        stride = 2 if index in (2, 4) else 1
        layers += [block(inputs, factor * width, stride), nn.ReLU()]
        inputs = factor * width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return nn.Sequential(*layers, *head)


def acnet(classes: int = 10, channels: int = 3, width: int = 16) -> nn.Sequential:
    """Six ACNet blocks and a linear head, for small images."""
    return _small(ACBlock, classes, channels, width)


def dbbnet(classes: int = 10, channels: int = 3, width: int = 16) -> nn.Sequential:
    """Six Diverse Branch Blocks and a linear head, for small images."""
    return _small(DBBlock, classes, channels, width)
