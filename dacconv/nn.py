"""The layers that the forms ``sum`` and ``concat`` need in a torch module.

torch has no layer of its own that adds or joins branches. A model that holds these needs dacconv
where it is loaded, so they are used only where the user asks for such a form.
"""

from __future__ import annotations

import torch
from torch import nn


class Sum(nn.Sequential):
    """What its layers make of the same input, added."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``(batch, channels, *spatial)`` in; out as each of the layers has it."""
        first, *others = self
        result: torch.Tensor = first(input)
        for other in others:
            result = result + other(input)
        return result


class Concat(nn.Sequential):
    """What its layers, convs with ``axes`` spatial axes, make of the same input, joined."""

    def __init__(self, *layers: nn.Module, axes: int) -> None:
        super().__init__(*layers)
        self.axes = axes

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``(batch, channels, *spatial)`` in; the channels of all layers, one after the other."""
        return torch.cat([layer(input) for layer in self], dim=-1 - self.axes)
