"""One layer of every kind, followed by a linear one."""

from __future__ import annotations

import torch
from torch import nn

KINDS: dict[str, nn.Module] = {
    "1-D": nn.Conv1d(6, 8, 5, stride=2, padding=2),
    "3-D": nn.Conv3d(4, 6, (2, 3, 3), padding=(1, 1, 0), bias=False),
    "grouped": nn.Conv2d(8, 12, 3, groups=2, stride=2, padding=1),
    "wide": nn.Conv2d(4, 6, (1, 7), padding=(0, 3)),
    "dilated": nn.Conv2d(4, 6, 3, dilation=(1, 2), padding=2),
    "transposed": nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1),
    "transposed, 1-D": nn.ConvTranspose1d(6, 4, 3, stride=2, padding=1, output_padding=1),
    "transposed, grouped": nn.ConvTranspose2d(
        8, 6, 3, groups=2, stride=(2, 3), padding=1, output_padding=(1, 2), dilation=1
    ),
    "transposed, dilated": nn.ConvTranspose2d(4, 6, 3, dilation=2, padding=2, bias=False),
    "1x1": nn.Conv2d(6, 8, 1, stride=2),
    "1x1, grouped": nn.Conv2d(8, 8, 1, groups=2),
    "same": nn.Conv2d(4, 6, 4, padding="same"),
}
"""All are given random weights by :func:`net_of`."""


def sizes_of(kind: str) -> tuple[int, ...]:
    """The shape of an input of the network of that kind."""
    layer = KINDS[kind]
    axes = len(layer.kernel_size)
    return (2, layer.in_channels, *(9, 8, 7)[:axes])


def net_of(kind: str) -> nn.Module:
    """The layer, ReLU, the mean over the positions, and a linear layer; the same weights always."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layer = type(KINDS[kind])(**_arguments(KINDS[kind]))
        axes = len(layer.kernel_size)
        pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[axes](1)
        head = nn.Linear(layer.out_channels, 5)
        return nn.Sequential(layer, nn.ReLU(), pool, nn.Flatten(), head).eval()


def _arguments(layer: nn.Module) -> dict[str, object]:
    names = [
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
    ]
    found = {name: getattr(layer, name) for name in names}
    found |= {"groups": layer.groups, "bias": layer.bias is not None}
    if layer.transposed:
        found["output_padding"] = layer.output_padding
    return found
