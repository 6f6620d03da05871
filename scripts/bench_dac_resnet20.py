"""Top-1 of plain DAC on ResNet-20, BatchNorm as it is, the same rank on all 19 convs.

    .venv/bin/python scripts/bench_dac_resnet20.py [--ranks 1 2 3 4] [--threads 2]

The 10,000 CIFAR-10 test images, through the state dict (torch, ``dacconv.apply``) and through
an ONNX export (ONNX Runtime), both converted by the command line with ``--no-fuse``. An
independent implementation measured 7.6, 15.4, 24.9 and 74.8 % at ranks 1 to 4; at most 0.3
points may lie between. The last column is what the command does by default: BatchNorm merged.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np

EXPECTED = {1: 7.6, 2: 15.4, 3: 24.9, 4: 74.8}
ALLOWED = 0.3
BATCH = 250
ARCH = f"{measure.ROOT / 'scripts' / 'archs.py'}:ResNet20"


def test_images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images ``(10000, 3, 32, 32)`` float32 and their labels."""
    held = np.load(folder / "cifar10" / "test.npz")
    mean = np.array((0.485, 0.456, 0.406), np.float32)
    std = np.array((0.229, 0.224, 0.225), np.float32)
    x = (held["x"].astype(np.float32) / 255 - mean) / std
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), held["y"]


def top1(net: Callable[[np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    """The share of images, in percent, whose highest logit is their label's."""
    guesses = [net(x[i : i + BATCH]).argmax(1) for i in range(0, len(x), BATCH)]
    return 100 * float((np.concatenate(guesses) == y).mean())


def torch_net(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    import archs  # beside this file
    import torch

    import dacconv

    torch.set_num_threads(threads)
    if path.suffix == ".th":
        net = archs.ResNet20()
        net.load_state_dict(archs.read_state(str(path)))
    else:
        net = dacconv.apply(archs.ResNet20(), path)
    net.eval()

    @torch.no_grad()
    def run(x: np.ndarray) -> np.ndarray:
        return net(torch.from_numpy(x)).numpy()

    return run


def onnx_net(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"image": x})[0]


def convert(source: Path, out: Path, rank: int, *more: str) -> dict[str, float]:
    """Convert with the command line; MACs of the report's totals."""
    report = out.with_suffix(".json")
    options = ["--rank", str(rank), "--no-verify", "--force", "-o", str(out), *more]
    measure.run([measure.DACCONV, "convert", str(source), *options, "--json", str(report)])
    return json.loads(report.read_text())["totals"]["macs"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    folder = measure.data_folder()
    checkpoint = folder / "cifar10" / "resnet20.th"
    x, y = test_images(folder)
    measure.title("Plain DAC on ResNet-20, 10,000 images", "torch", "onnxruntime", "numpy")
    rows, missed = [], False
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        graph = made / "resnet20.onnx"
        script = str(Path(__file__).with_name("export_onnx.py"))
        measure.run([sys.executable, script, "resnet20", str(checkpoint), str(graph)])
        for rank in (0, *options.ranks):
            weights, model, macs = checkpoint, graph, None
            if rank:
                weights, model = made / f"rank{rank}.pt", made / f"rank{rank}.onnx"
                arch = ("--arch", ARCH, "--input-shape", "1,3,32,32")
                macs = convert(checkpoint, weights, rank, "--no-fuse", *arch)
                other = convert(graph, model, rank, "--no-fuse")
                if other != macs:
                    measure.stop(f"rank {rank}: MACs differ, {macs} and {other}")
                convert(graph, made / "merged.onnx", rank)
            found = (
                top1(torch_net(weights, options.threads), x, y),
                top1(onnx_net(model, options.threads), x, y),
            )
            expected = EXPECTED.get(rank, 91.73 if rank == 0 else None)
            if expected is not None:
                missed |= max(abs(value - expected) for value in found) > ALLOWED
            merged = top1(onnx_net(made / "merged.onnx", options.threads), x, y) if rank else None
            saved = f"{100 * (1 - macs['after'] / macs['before']):.2f} %" if macs else ""
            rows.append(
                (
                    str(rank or "original"),
                    *(f"{value:.2f} %" for value in found),
                    "" if expected is None else f"{expected} %",
                    saved,
                    "" if merged is None else f"{merged:.2f} %",
                )
            )
            measure.progress(" | ".join(rows[-1]))
    header = ("rank", "state dict, torch", "ONNX, ONNX Runtime", "expected", "MACs saved")
    header = (*header, "ONNX, BatchNorm merged")
    print(measure.table(header, rows))
    if missed:
        measure.stop(f"more than {ALLOWED} points from what was expected")


if __name__ == "__main__":
    main()
