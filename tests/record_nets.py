"""Small networks whose converted forms have other layers than they: what ``apply`` must rebuild."""

from __future__ import annotations

import reparam_nets
import torch
from plain_nets import randomized
from torch import Tensor, nn


def _seeded(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return randomized(nn.Sequential(*layers)).eval()


def one_then_three() -> nn.Module:
    return _seeded(nn.Conv2d(6, 8, 1), nn.Conv2d(8, 10, 3))


def three_then_one() -> nn.Module:
    return _seeded(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Conv2d(8, 4, 1))


def with_norms() -> nn.Module:
    norms = nn.BatchNorm2d(8), nn.BatchNorm2d(4)
    return _seeded(nn.Conv2d(6, 8, 3, bias=False), norms[0], nn.Conv2d(8, 4, 1), norms[1])


def transposed_then_one() -> nn.Module:
    return _seeded(nn.ConvTranspose2d(6, 6, 4, stride=2, padding=1), nn.Conv2d(6, 2, 1))


def one_then_transposed() -> nn.Module:
    return _seeded(nn.Conv2d(6, 9, 1), nn.ConvTranspose2d(9, 4, 3, stride=2))


def three_in_a_row() -> nn.Module:
    return _seeded(nn.Conv2d(6, 8, 1), nn.Conv2d(8, 10, 3), nn.Conv2d(10, 5, 1), nn.ReLU(),
                   nn.Conv2d(5, 7, 3))  # fmt: skip


def same_width() -> nn.Module:
    return _seeded(nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3))


class Gated(nn.Module):
    """A sum of branches with a tail that holds convs of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(6, 6, 3, padding=1)
        self.narrow = nn.Conv2d(6, 6, 1)
        self.tail = nn.Sequential(nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.wide(x) + self.narrow(x))


def branches() -> nn.Module:
    return _seeded(Gated(), nn.ReLU(), Gated())


def rep_vgg() -> nn.Module:
    torch.manual_seed(0)
    return randomized(
        nn.Sequential(nn.Conv2d(6, 6, 1), reparam_nets.RepVGGBlock(6, 8), nn.ReLU(),
                      nn.Conv2d(8, 8, 3))
    ).eval()  # fmt: skip


NETS = (
    one_then_three, three_then_one, with_norms, transposed_then_one, one_then_transposed,
    three_in_a_row, same_width, branches, rep_vgg,
)  # fmt: skip
