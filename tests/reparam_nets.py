"""Networks in the form that they are trained in: RepVGG, ACNet, Diverse Branch Block, MobileOne.

Written after the papers' own code. ``deployed`` is the number of convs and linear layers of the
form that they are deployed in.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(channels: int, out: int, kernel, stride=1, padding=0, groups=1) -> nn.Sequential:
    block = nn.Sequential()
    block.add_module(
        "conv", nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False)
    )
    block.add_module("bn", nn.BatchNorm2d(out))
    return block


class RepVGGBlock(nn.Module):
    def __init__(self, channels: int, out: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.nonlinearity = nn.ReLU()
        self.se = nn.Identity()
        same = out == channels and stride == 1
        self.rbr_identity = nn.BatchNorm2d(channels) if same else None
        self.rbr_dense = conv_bn(channels, out, 3, stride, 1, groups)
        self.rbr_1x1 = conv_bn(channels, out, 1, stride, 0, groups)

    def forward(self, x: Tensor) -> Tensor:
        identity = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return self.nonlinearity(self.se(self.rbr_dense(x) + self.rbr_1x1(x) + identity))


class RepVGG(nn.Module):
    """RepVGG-A0-like: five stages, every other layer of some grouped."""

    deployed = 6

    def __init__(self) -> None:
        super().__init__()
        self.stage0 = RepVGGBlock(3, 8, 2)
        self.stage1 = nn.Sequential(RepVGGBlock(8, 8, 2), RepVGGBlock(8, 8))
        self.stage2 = nn.Sequential(RepVGGBlock(8, 16, 2), RepVGGBlock(16, 16, groups=2))
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gap(self.stage2(self.stage1(self.stage0(x))))
        return self.linear(x.view(x.size(0), -1))


class ACBlock(nn.Module):
    def __init__(self, channels: int, out: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.square = nn.Conv2d(channels, out, 3, stride, 1, groups=groups, bias=False)
        self.square_bn = nn.BatchNorm2d(out)
        self.ver_conv = nn.Conv2d(channels, out, (3, 1), stride, (1, 0), groups=groups, bias=False)
        self.ver_bn = nn.BatchNorm2d(out)
        self.hor_conv = nn.Conv2d(channels, out, (1, 3), stride, (0, 1), groups=groups, bias=False)
        self.hor_bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        square = self.square_bn(self.square(x))
        return square + self.ver_bn(self.ver_conv(x)) + self.hor_bn(self.hor_conv(x))


class ACNet(nn.Module):
    deployed = 4

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ACBlock(3, 8), nn.ReLU(inplace=True), ACBlock(8, 8, 2, 2), nn.ReLU(inplace=True),
            ACBlock(8, 12), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1),
        )  # fmt: skip
        self.linear = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).flatten(1))


class BNAndPad(nn.Module):
    """BatchNorm, then a border of what the BatchNorm makes of zero."""

    def __init__(self, pad: int, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(x)
        if self.pad > 0:
            bn = self.bn
            values = bn.bias.detach() - bn.running_mean * bn.weight.detach() / torch.sqrt(
                bn.running_var + bn.eps
            )
            out = F.pad(out, [self.pad] * 4)
            values = values.view(1, -1, 1, 1)
            out[:, :, 0 : self.pad, :] = values
            out[:, :, -self.pad :, :] = values
            out[:, :, :, 0 : self.pad] = values
            out[:, :, :, -self.pad :] = values
        return out


class IdentityConv1x1(nn.Conv2d):
    """A 1x1 conv that learns the difference from the identity."""

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__(channels, channels, 1, groups=groups, bias=False)
        self.register_buffer("id_tensor", torch.zeros(channels, channels // groups, 1, 1))
        for i in range(channels):
            self.id_tensor[i, i % (channels // groups)] = 1

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight + self.id_tensor.to(self.weight.device).type_as(self.weight)
        return F.conv2d(x, kernel, None, 1, 0, self.dilation, self.groups)


class Joined(nn.Module):
    """Two convs of one input, joined: transform IV."""

    def __init__(self, channels: int, out: int, stride: int, groups: int) -> None:
        super().__init__()
        del groups
        self.a = nn.Conv2d(channels, out // 2, 3, stride, 1)
        self.b = nn.Conv2d(channels, out - out // 2, 3, stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x)], 1)


class DiverseBranchBlock(nn.Module):
    """kxk, 1x1, 1x1-kxk, 1x1-average, 1xk-kx1 scales and a concatenation, each with BatchNorm."""

    def __init__(self, channels: int, out: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.nonlinear = nn.ReLU()
        self.dbb_origin = conv_bn(channels, out, 3, stride, 1, groups)
        self.dbb_1x1 = conv_bn(channels, out, 1, stride, 0, groups)
        self.dbb_avg = nn.Sequential()
        self.dbb_avg.add_module("conv", nn.Conv2d(channels, out, 1, groups=groups, bias=False))
        self.dbb_avg.add_module("bn", BNAndPad(1, out))
        self.dbb_avg.add_module("avg", nn.AvgPool2d(3, stride, 0))
        self.dbb_avg.add_module("avgbn", nn.BatchNorm2d(out))
        self.dbb_1x1_kxk = nn.Sequential()
        self.dbb_1x1_kxk.add_module("idconv1", IdentityConv1x1(channels, groups))
        self.dbb_1x1_kxk.add_module("bn1", BNAndPad(1, channels))
        self.dbb_1x1_kxk.add_module(
            "conv2", nn.Conv2d(channels, out, 3, stride, 0, groups=groups, bias=False)
        )
        self.dbb_1x1_kxk.add_module("bn2", nn.BatchNorm2d(out))
        self.dbb_1xk = conv_bn(channels, out, (1, 3), stride, (0, 1), groups)
        self.joined = None
        if groups == 1:
            self.joined = nn.Sequential(Joined(channels, out, stride, groups), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.dbb_origin(x)
        out += self.dbb_1x1(x)
        out += self.dbb_avg(x)
        out += self.dbb_1x1_kxk(x)
        out += self.dbb_1xk(x)
        if self.joined is not None:
            out += self.joined(x)
        return self.nonlinear(out)


class DBBNet(nn.Module):
    deployed = 4

    def __init__(self) -> None:
        super().__init__()
        self.a = DiverseBranchBlock(3, 8)
        self.b = DiverseBranchBlock(8, 8, 2, 2)
        self.c = DiverseBranchBlock(8, 12, 2)
        self.linear = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.c(self.b(self.a(x))).mean((2, 3)))


class MobileOneBlock(nn.Module):
    def __init__(
        self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, many: int = 2
    ) -> None:
        super().__init__()
        self.se = nn.Identity()
        self.activation = nn.ReLU()
        same = out == channels and stride == 1
        self.rbr_skip = nn.BatchNorm2d(channels) if same else None
        pad = kernel // 2
        self.rbr_conv = nn.ModuleList(
            conv_bn(channels, out, kernel, stride, pad, groups) for _ in range(many)
        )
        self.rbr_scale = conv_bn(channels, out, 1, stride, 0, groups) if kernel > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        identity_out = 0 if self.rbr_skip is None else self.rbr_skip(x)
        scale_out = 0 if self.rbr_scale is None else self.rbr_scale(x)
        out = scale_out + identity_out
        for branch in self.rbr_conv:
            out += branch(x)
        return self.activation(self.se(out))


class MobileOne(nn.Module):
    deployed = 6

    def __init__(self) -> None:
        super().__init__()
        self.stage0 = MobileOneBlock(3, 8, 3, 2)
        self.stage1 = nn.Sequential(
            MobileOneBlock(8, 8, 3, 2, groups=8), MobileOneBlock(8, 12, 1, many=3),
            MobileOneBlock(12, 12, 3, 1, groups=12), MobileOneBlock(12, 12, 1),
        )  # fmt: skip
        self.linear = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.stage1(self.stage0(x)).mean((2, 3)))


class PlainDBB(nn.Module):
    """The same branches in plain layers: a padded 1x1 makes the border of its BatchNorm."""

    def __init__(self, channels: int, out: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.origin = conv_bn(channels, out, 3, stride, 1, groups)
        self.point = conv_bn(channels, out, 1, stride, 0, groups)
        self.avg = nn.Sequential(
            conv_bn(channels, out, 1, 1, 1, groups), nn.AvgPool2d(3, stride), nn.BatchNorm2d(out)
        )
        self.chain = nn.Sequential(
            conv_bn(channels, channels, 1, 1, 1, groups),
            conv_bn(channels, out, 3, stride, 0, groups),
        )
        self.scale = conv_bn(channels, out, (3, 1), stride, (1, 0), groups)
        self.joined = nn.Sequential(Joined(channels, out, stride, groups), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        first = self.origin(x) + self.point(x) + self.avg(x) + self.chain(x)
        return F.relu(first + self.scale(x) + self.joined(x))


class PlainDBBNet(nn.Module):
    deployed = 3

    def __init__(self) -> None:
        super().__init__()
        self.a = PlainDBB(3, 8)
        self.b = PlainDBB(8, 12, 2)
        self.linear = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.b(self.a(x)).mean((2, 3)))


class EdgeBlock(nn.Module):
    """1x1 -> padding with the bias -> 3x3, with a shortcut of 1x1s: RT4KSR and RVSR have it."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, wide, 1)
        self.fea = nn.Conv2d(wide, wide, 3)
        self.reduce = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.expand(x)
        out_identity = out
        bias = self.expand.bias.view(1, -1, 1, 1)
        out = F.pad(out, (1, 1, 1, 1), "constant", 0)
        out[:, :, 0:1, :] = bias
        out[:, :, -1:, :] = bias
        out[:, :, :, 0:1] = bias
        out[:, :, :, -1:] = bias
        out = self.fea(out) + out_identity
        return self.reduce(out) + x


class EdgeSR(nn.Module):
    deployed = 3

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 6, 3, padding=1)
        self.body = nn.Sequential(EdgeBlock(6, 12), nn.PReLU(6))
        self.tail = nn.Conv2d(6, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.tail(self.body(self.head(x))))


NETS = {net.__name__: net for net in (RepVGG, ACNet, PlainDBBNet, MobileOne, DBBNet, EdgeSR)}


def build(name: str, seed: int = 0) -> nn.Module:
    """The network in eval mode, its BatchNorm statistics far from (0, 1)."""
    torch.manual_seed(seed)
    net = NETS[name]()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 2)
            module.running_var.copy_(torch.rand_like(module.running_var) * 5 + 0.05)
            nn.init.normal_(module.weight, 0, 1)
            nn.init.normal_(module.bias, 0, 1)
    return net.eval()


def export_onnx(net: nn.Module, path: str, *inputs: Tensor) -> None:
    """As exported for training: BatchNorm kept, no constants folded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated, the other one folds
        torch.onnx.export(
            net, inputs, path, dynamo=False, do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )  # fmt: skip


def export_program(net: nn.Module, path: str, *inputs: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net, inputs), path)
