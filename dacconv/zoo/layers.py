"""Layers that several networks share."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def divisible(width: float, divisor: int = 8) -> int:
    """The nearest multiple of ``divisor`` that is not more than a tenth below ``width``.

    The rounding of channels in MobileNet v2 and its successors.
    """
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    *,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """A conv that keeps the size, its BatchNorm and its activation, named 0, 1 and 2."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([activation()] if activation is not None else []))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Transpose the channels from (groups, channels of a group) to (channels of a group, groups).

    ShuffleNet, arXiv 1707.01083, section 3.1.
    """
    batch, channels, height, width = x.shape
    x = x.reshape(batch, groups, channels // groups, height, width)
    return x.transpose(1, 2).reshape(batch, channels, height, width)


def pad_as_tensorflow(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad so that the output has ``ceil(size / stride)`` positions, the odd one at the end."""
    pads: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        more = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [more // 2, more - more // 2]
    return F.pad(x, pads) if any(pads) else x
