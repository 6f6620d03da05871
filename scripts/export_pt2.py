"""Export the networks here as torch.export programs, with a free batch.

python scripts/export_pt2.py {resnet20,vgg16,dncnn} CHECKPOINT OUT SIDE
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import archs

NETWORKS = {
    "resnet20": (archs.ResNet20, 3),
    "vgg16": (archs.VGG16Probe, 3),
    "dncnn": (archs.DnCNN, 1),
}


def main() -> None:
    name, checkpoint, out, side = sys.argv[1:]
    build, channels = NETWORKS[name]
    net = build().eval()
    net.load_state_dict(archs.read_state(checkpoint))
    example = torch.zeros(2, channels, int(side), int(side))
    free = ({0: torch.export.Dim("batch", min=1, max=1024)},)
    torch.export.save(torch.export.export(net, (example,), dynamic_shapes=free), out)


if __name__ == "__main__":
    main()
