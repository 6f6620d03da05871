"""The networks of the checkpoints that the measurements use, by the names that scripts give them.

    dacconv convert resnet20.th --arch scripts/archs.py:ResNet20 --input-shape 1,3,32,32 ...

They are defined in ``dacconv.zoo``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dacconv.zoo.plain import DnCNN, VGG16Probe
from dacconv.zoo.resnet import ResNet20
from dacconv.zoo.squeezenet import SqueezeNet11

__all__ = ["DnCNN", "ResNet20", "SqueezeNet11", "VGG16Probe", "read_state"]


def read_state(path: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint of one of these networks, without ``module.``."""
    held = torch.load(path, map_location="cpu", weights_only=True)
    held = held.get("state_dict", held)
    return {name.removeprefix("module."): value for name, value in held.items()}
