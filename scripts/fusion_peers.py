"""Runs another tool on a file, in that tool's own environment; see bench_fusions.py.

python fusion_peers.py onnxslim IN.onnx OUT.onnx
python fusion_peers.py timm NAME FOLDER      # NAME.pt2 before and NAME.timm.pt2 after
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path


def onnxoptimizer(source: str, target: str) -> None:
    import onnx
    import onnxoptimizer

    passes = onnxoptimizer.get_fuse_and_elimination_passes()
    onnx.save(onnxoptimizer.optimize(onnx.load(source), passes, fixed_point=True), target)


def onnxsim(source: str, target: str) -> None:
    import onnx
    import onnxsim

    made, checked = onnxsim.simplify(onnx.load(source))
    if not checked:
        sys.exit("onnxsim could not validate its result")
    onnx.save(made, target)


def onnxslim(source: str, target: str) -> None:
    import onnx
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), target)


def timm(name: str, folder: str) -> None:
    """Random weights and statistics; exported before and after reparameterize_model."""
    import torch

    # a torchvision built for CUDA does not load its operators beside a torch for CPUs; timm
    # wants none of them here
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
    from timm import create_model
    from timm.utils import reparameterize_model

    torch.manual_seed(0)
    net = create_model(name).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    x = torch.randn(1, *net.default_cfg["input_size"])
    for suffix, each in ((".pt2", net), (".timm.pt2", reparameterize_model(net))):
        torch.export.save(torch.export.export(each, (x,)), Path(folder) / f"{name}{suffix}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    tools = {"onnxoptimizer": onnxoptimizer, "onnxsim": onnxsim, "onnxslim": onnxslim, "timm": timm}
    tools[sys.argv[1]](sys.argv[2], sys.argv[3])
