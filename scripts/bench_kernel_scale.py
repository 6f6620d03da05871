"""In which scale should a kernel be split that a BatchNorm follows? Top-1 by rank.

    .venv/bin/python scripts/bench_kernel_scale.py [--ranks 1 2 3 4 5] [--images 10000]

Plain DAC on every conv: BatchNorm left as it is; merged into the kernel before the split
(``folded``); after it, into the pointwise conv (``own``); and every output channel brought to
norm 1 for the split (``unit``). All cost the same but for the BatchNorm that the first keeps.
ResNet-20 on every n-th of the CIFAR-10 test images, ``--images`` in all, with and without its
stem; the carried Fashion-MNIST net on its 2,000; and the same two nets with every channel's
scale changed at random by up to 30 x, conv and BatchNorm statistics together, so that they
compute the same function: nets whose channel scales differ widely.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import measure
import numpy as np
from bench_dac_resnet20 import onnx_net, test_images, top1
from demo import MEAN, STD

WAYS = {
    "BatchNorm kept": ("--no-fuse",),
    "merged after (own)": ("--kernel-scale", "own"),
    "merged before (folded)": ("--kernel-scale", "folded"),
    "norm 1 (unit)": ("--kernel-scale", "unit"),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A network, its images and labels, and what of it is split."""

    name: str
    graph: Path
    images: tuple[np.ndarray, np.ndarray]
    options: tuple[str, ...] = ()


def rescaled(source: Path, target: Path) -> None:
    """Write the network with its conv channels scaled at random and its outputs the same."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(source)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    rng = np.random.default_rng(0)
    convs = {n.output[0]: n.input[1] for n in model.graph.node if n.op_type == "Conv"}

    def change(name: str, function: Callable[[np.ndarray], np.ndarray]) -> None:
        array = function(numpy_helper.to_array(tensors[name])).astype(np.float32)
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))

    for node in model.graph.node:
        if node.op_type == "BatchNormalization" and node.input[0] in convs:
            gamma, mean, var = node.input[1], node.input[3], node.input[4]
            rows = tensors[gamma].dims[0]
            scale = np.exp(rng.uniform(-np.log(30), np.log(30), rows))
            eps = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
            change(convs[node.input[0]], lambda w, s=scale: w * s[:, None, None, None])
            change(mean, lambda m, s=scale: m * s)
            change(var, lambda v, s=scale, e=eps: np.maximum((v + e) * s**2 - e, 0))
    onnx.save(model, target)


def cases(folder: Path, made: Path, count: int) -> list[Case]:
    """The networks, written to ``made``."""
    resnet = made / "resnet20.onnx"
    script = str(Path(__file__).with_name("export_onnx.py"))
    checkpoint = folder / "cifar10" / "resnet20.th"
    measure.run([str(measure.BIN / "python"), script, "resnet20", str(checkpoint), str(resnet)])
    fashion = measure.ROOT / "tests" / "assets" / "fashion.onnx"
    held = np.load(fashion.with_name("fashion_test.npz"))
    clothes = ((held["x"][:, None].astype(np.float32) / 255 - MEAN) / STD, held["y"])
    x, y = test_images(folder)
    step = len(x) // count  # the file is sorted by class
    objects = (x[::step], y[::step])
    rescaled(resnet, made / "resnet20-rescaled.onnx")
    rescaled(fashion, made / "fashion-rescaled.onnx")
    return [
        Case("ResNet-20", resnet, objects),
        Case("ResNet-20, stem left alone", resnet, objects, ("--skip", "conv1")),
        Case("ResNet-20, channels rescaled", made / "resnet20-rescaled.onnx", objects),
        Case("Fashion-MNIST net", fashion, clothes),
        Case("Fashion-MNIST net, channels rescaled", made / "fashion-rescaled.onnx", clothes),
    ]


def accuracy(case: Case, rank: int, way: tuple[str, ...], out: Path, threads: int) -> float:
    """Top-1 in percent after a conversion by the command line."""
    options = ["--rank", str(rank), "--no-verify", "--force", *case.options, *way]
    measure.run([measure.DACCONV, "convert", str(case.graph), *options, "-o", str(out)])
    return top1(onnx_net(out, threads), *case.images)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    measure.title("The scale of a split, plain DAC on every conv", "onnxruntime", "numpy")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        for case in cases(measure.data_folder(), made, options.images):
            before = top1(onnx_net(case.graph, options.threads), *case.images)
            for rank in options.ranks:
                found = [
                    accuracy(case, rank, way, made / "out.onnx", options.threads)
                    for way in WAYS.values()
                ]
                rows.append((case.name, str(rank), *(f"{value:.2f}" for value in found)))
                measure.progress(f"{' | '.join(rows[-1])} (original {before:.2f})")
    print(measure.table(("net", "rank", *WAYS), rows))


if __name__ == "__main__":
    main()
