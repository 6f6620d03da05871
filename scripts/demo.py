"""What ``make demo`` shows: the carried network converted in both formats, and its accuracy.

The commands are real; paste them to repeat one. Results go to out/demo.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
ASSETS = Path("tests/assets")
OUT = Path("out/demo")
ARCH = f"{ASSETS / 'fashion_net.py'}:FashionNet"
MEAN, STD = 0.2860, 0.3530
BATCH = 250

Net = Callable[[np.ndarray], np.ndarray]


def run(*arguments: str) -> None:
    """Run dacconv as a user would, its output on the terminal."""
    print(f"\n$ {shlex.join(['dacconv', *arguments])}", flush=True)
    command = [str(Path(sys.executable).with_name("dacconv")), *arguments]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if status:
        sys.exit(status)


def onnx_net(path: Path) -> Net:
    import onnxruntime

    session = onnxruntime.InferenceSession(ROOT / path, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"image": x})[0]


def torch_net(path: Path, *, converted: bool) -> Net:
    import torch

    import dacconv

    sys.path.insert(0, str(ROOT / ASSETS))
    from fashion_net import FashionNet

    net = FashionNet()
    if converted:
        net = dacconv.apply(net, ROOT / path)
    else:
        net.load_state_dict(torch.load(ROOT / path, weights_only=True))
    net.eval()

    @torch.no_grad()
    def call(x: np.ndarray) -> np.ndarray:
        return net(torch.from_numpy(x)).numpy()

    return call


def top1(net: Net, x: np.ndarray, y: np.ndarray) -> float:
    """The share of images, in percent, whose highest logit is their label's."""
    guesses = [net(x[i : i + BATCH]).argmax(1) for i in range(0, len(x), BATCH)]
    return 100 * float((np.concatenate(guesses) == y).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", default="4", help="as dacconv convert takes it")
    parser.add_argument("--last-k", default="4", help="as dacconv convert takes it")
    options = parser.parse_args()
    choice = ["--rank", options.rank, "--last-k", options.last_k]
    (ROOT / OUT).mkdir(parents=True, exist_ok=True)
    model, graph = OUT / "fashion.dac.pth", OUT / "fashion.dac.onnx"
    choice += ["--data", str(ASSETS / "fashion_test.npz")]
    choice += ["--input-mean", str(MEAN), "--input-std", str(STD)]
    run("convert", str(ASSETS / "fashion.onnx"), *choice, "--force", "-o", str(graph))
    arch = ["--arch", ARCH, "--input-shape", "1,1,28,28"]
    run("convert", str(ASSETS / "fashion.pth"), *arch, *choice, "--force", "-o", str(model))

    held = np.load(ROOT / ASSETS / "fashion_test.npz")
    x, y = (held["x"][:, None].astype(np.float32) / 255 - MEAN) / STD, held["y"]
    x = x.astype(np.float32)
    print(f"\nCounted here, without dacconv: top-1 on {len(y):,} test images of Fashion-MNIST,")
    print("without any training:\n")
    print(f"{'':24}{'original':>10}{'converted':>11}")
    nets = {
        "ONNX, ONNX Runtime": (onnx_net(ASSETS / "fashion.onnx"), onnx_net(graph)),
        "checkpoint, PyTorch": (
            torch_net(ASSETS / "fashion.pth", converted=False),
            torch_net(model, converted=True),
        ),
    }
    for name, (before, after) in nets.items():
        print(f"{name:24}{top1(before, x, y):>8.2f} %{top1(after, x, y):>9.2f} %")


if __name__ == "__main__":
    main()
