"""Networks that answer at every position: a U-Net and a detector.

The U-Net (Ronneberger et al., arXiv 1505.04597) has the parameter names of the much copied
``milesial/Pytorch-UNet`` with transposed convs; those of the detector are our own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dacconv.zoo.layers import conv_bn


class DoubleConv(nn.Module):
    """Two 3x3 convs, each with BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            *conv_bn(inputs, outputs, 3), *conv_bn(outputs, outputs, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h, w)``."""
        return self.double_conv(x)


class Down(nn.Module):
    """A 2x2 max pool and two convs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / 2, w / 2)``."""
        return self.maxpool_conv(x)


class Up(nn.Module):
    """A 2x2 transposed conv, concatenation with the other side, and two convs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, inputs // 2, 2, 2)
        self.conv = DoubleConv(inputs, outputs)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, 2 h, 2 w)``."""
        x = self.up(x)
        down, right = other.shape[2] - x.shape[2], other.shape[3] - x.shape[3]
        if down or right:
            x = F.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2])
        return self.conv(torch.cat([other, x], 1))


class UNet(nn.Module):
    """Four levels down and up again, and a 1x1 conv to the classes."""

    def __init__(self, classes: int = 2, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        w = width
        self.inc = DoubleConv(channels, w)
        self.down1, self.down2 = Down(w, 2 * w), Down(2 * w, 4 * w)
        self.down3, self.down4 = Down(4 * w, 8 * w), Down(8 * w, 16 * w)
        self.up1, self.up2 = Up(16 * w, 8 * w), Up(8 * w, 4 * w)
        self.up3, self.up4 = Up(4 * w, 2 * w), Up(2 * w, w)
        self.outc = nn.Module()
        self.outc.add_module("conv", nn.Conv2d(w, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(batch, classes, h, w)``."""
        first = self.inc(x)
        second = self.down1(first)
        third = self.down2(second)
        fourth = self.down3(third)
        x = self.up1(self.down4(fourth), fourth)
        x = self.up4(self.up3(self.up2(x, third), second), first)
        return self.outc.get_submodule("conv")(x)


class CrossStage(nn.Module):
    """Half of the channels through residual 3x3 convs, then both halves through a 1x1 conv."""

    def __init__(self, inputs: int, outputs: int, depth: int, *, residual: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.left, self.right = (conv_bn(inputs, half, activation=nn.SiLU) for _ in range(2))
        self.layers = nn.ModuleList(
            nn.Sequential(
                conv_bn(half, half, activation=nn.SiLU), conv_bn(half, half, 3, activation=nn.SiLU)
            )
            for _ in range(depth)
        )
        self.residual = residual
        self.join = conv_bn(2 * half, outputs, activation=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h, w)``."""
        y = self.right(x)
        for layer in self.layers:
            y = y + layer(y) if self.residual else layer(y)
        return self.join(torch.cat([self.left(x), y], 1))


class Detector(nn.Module):
    """A YOLO-like detector: a cross-stage backbone, a pyramid, and heads at strides 8, 16, 32.

    Each position has ``anchors`` boxes of 4 sizes, 1 confidence and the scores of the classes.
    """

    def __init__(
        self, classes: int = 80, channels: int = 3, width: int = 16, anchors: int = 3
    ) -> None:
        super().__init__()
        w, act = width, nn.SiLU
        self.stem = conv_bn(channels, w, 3, 2, activation=act)
        self.stage2 = self._stage(w, 2 * w, 1)
        self.stage3 = self._stage(2 * w, 4 * w, 2)
        self.stage4 = self._stage(4 * w, 8 * w, 2)
        self.stage5 = self._stage(8 * w, 16 * w, 1)
        self.narrow4 = conv_bn(16 * w, 8 * w, activation=act)
        self.merge4 = CrossStage(16 * w, 8 * w, 1, residual=False)
        self.narrow3 = conv_bn(8 * w, 4 * w, activation=act)
        self.merge3 = CrossStage(8 * w, 4 * w, 1, residual=False)
        outputs = anchors * (5 + classes)
        widths = (4 * w, 8 * w, 16 * w)
        self.heads = nn.ModuleList(nn.Conv2d(each, outputs, 1) for each in widths)

    @staticmethod
    def _stage(inputs: int, outputs: int, depth: int) -> nn.Sequential:
        down = conv_bn(inputs, outputs, 3, 2, activation=nn.SiLU)
        return nn.Sequential(down, CrossStage(outputs, outputs, depth))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes and scores at strides 8, 16 and 32: ``(batch, anchors (5 + classes), h, w)``."""
        third = self.stage3(self.stage2(self.stem(x)))
        fourth = self.stage4(third)
        fifth = self.stage5(fourth)
        up = F.interpolate(self.narrow4(fifth), scale_factor=2.0, mode="nearest")
        fourth = self.merge4(torch.cat([up, fourth], 1))
        up = F.interpolate(self.narrow3(fourth), scale_factor=2.0, mode="nearest")
        third = self.merge3(torch.cat([up, third], 1))
        return self.heads[0](third), self.heads[1](fourth), self.heads[2](fifth)
