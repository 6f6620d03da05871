"""Train the network in tests/assets and write it there as a checkpoint and as ONNX.

    .venv/bin/python scripts/train_fashion.py [--data DIR] [--epochs N] [--out DIR]

The data is Fashion-MNIST as Debian's package dataset-fashion-mnist ships it. Training takes
minutes on two cores (a GPU is used where there is one), because the first epochs see smaller
images: a network that ends in a spatial mean takes any size.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType

import export_onnx  # beside this file
import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "tests" / "assets"
DATA = Path("/usr/share/datasets/fashion-mnist")
TEST_IMAGES = 2000
STAGES = ((0.35, 20), (0.65, 24), (1.0, 28))
"""Up to this share of the epochs, the images are this many pixels wide."""


def read_idx(path: Path) -> np.ndarray:
    """The array in a gzipped idx file of unsigned bytes."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        sys.exit(f"{path}: not an idx file of unsigned bytes")
    rank = data[3]
    shape = np.frombuffer(data, ">i4", rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images ``(n, 28, 28)`` uint8 and labels ``(n,)`` int64 of ``train`` or ``t10k``."""
    images, labels = (
        folder / f"{split}-{part}.gz" for part in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    for path in (images, labels):
        if not path.is_file():
            sys.exit(
                f"{path} is missing\n"
                "  Debian and Ubuntu: apt-get install dataset-fashion-mnist\n"
                "  elsewhere: --data DIR with the four .gz files of Fashion-MNIST"
            )
    return read_idx(images), read_idx(labels).astype(np.int64)


def load_arch() -> ModuleType:
    """The module tests/assets/fashion_net.py."""
    spec = importlib.util.spec_from_file_location("fashion_net", ASSETS / "fashion_net.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def augment(x: Tensor, size: int) -> Tensor:
    """Random shifts by up to 2 pixels and flips of ``(batch, 1, 28, 28)``, then ``size`` wide."""
    batch, _, height, width = x.shape
    padded = F.pad(x, (2, 2, 2, 2), value=float(x.min()))
    rows = torch.randint(0, 5, (batch, 1, 1), device=x.device)
    cols = torch.randint(0, 5, (batch, 1, 1), device=x.device)
    rows = rows + torch.arange(height, device=x.device)[None, :, None]
    across = torch.arange(width, device=x.device).expand(batch, width)
    flip = torch.rand(batch, 1, device=x.device) < 0.5
    cols = cols + torch.where(flip, across.flip(1), across)[:, None, :]
    index = torch.arange(batch, device=x.device)[:, None, None]
    shifted = padded[:, 0][index, rows, cols][:, None]
    if size == width:
        return shifted
    return F.interpolate(shifted, size=(size, size), mode="bilinear", antialias=True)


def train(net: nn.Module, x: Tensor, y: Tensor, *, epochs: int, batch: int, peak: float) -> None:
    """Train ``net`` in place on normalised images ``x`` and labels ``y``."""
    decayed = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, lr=peak, momentum=0.9, nesterov=True)
    steps = len(x) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, peak, epochs=epochs, steps_per_epoch=steps, pct_start=0.25, final_div_factor=1e3
    )
    net.train()
    for epoch in range(epochs):
        size = next(size for share, size in STAGES if (epoch + 1) / epochs <= share)
        start, right, total = time.perf_counter(), 0, 0.0
        for chosen in torch.randperm(len(x), device=x.device)[: steps * batch].split(batch):
            images = augment(x[chosen], size).contiguous(memory_format=torch.channels_last)
            logits = net(images)
            loss = F.cross_entropy(logits, y[chosen], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            right += int((logits.argmax(1) == y[chosen]).sum())
            total += float(loss.detach())
        print(
            f"epoch {epoch + 1:2d}/{epochs}  {size} px  loss {total / steps:.4f}  "
            f"train {100 * right / (steps * batch):.2f} %  {time.perf_counter() - start:.0f} s",
            flush=True,
        )


@torch.no_grad()
def top1(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of images, in percent, whose highest logit is their label's."""
    net.eval()
    right = sum(
        int((net(images).argmax(1) == labels).sum())
        for images, labels in zip(x.split(500), y.split(500), strict=True)
    )
    return 100 * right / len(x)


def write_net(net: nn.Module, folder: Path) -> None:
    """Write fashion.pth and fashion.onnx, once the two agree."""
    state = net.state_dict()
    model = export_onnx.fashion(export_onnx.arrays(state))
    error = export_onnx.disagreement(model, net, (8, 1, 28, 28))
    if error > 1e-5:
        sys.exit(f"the ONNX graph disagrees with torch: relative error {error:.1e}")
    torch.save(state, folder / "fashion.pth")
    onnx.save(model, folder / "fashion.onnx")
    print(f"wrote {folder}; relative error of ONNX against torch {error:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the four .gz files")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write to")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1, help="peak of the learning rate")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    train_x, train_y = read_split(options.data, "train")
    test_x, test_y = read_split(options.data, "t10k")
    arch = load_arch()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def normalise(images: np.ndarray) -> Tensor:
        x = torch.from_numpy(images.astype(np.float32))[:, None] / 255
        return ((x - arch.MEAN) / arch.STD).to(device)

    torch.manual_seed(options.seed)
    net = arch.FashionNet().to(device, memory_format=torch.channels_last)
    start = time.perf_counter()
    train(
        net,
        normalise(train_x),
        torch.from_numpy(train_y).to(device),
        epochs=options.epochs,
        batch=options.batch,
        peak=options.lr,
    )
    print(f"trained in {time.perf_counter() - start:.0f} s on {device}")
    x, y = normalise(test_x), torch.from_numpy(test_y).to(device)
    print(f"top-1 on all {len(y):,} test images: {top1(net, x, y):.2f} %")
    few = top1(net, x[:TEST_IMAGES], y[:TEST_IMAGES])
    print(f"top-1 on the first {TEST_IMAGES:,}: {few:.2f} %")

    options.out.mkdir(parents=True, exist_ok=True)
    write_net(net.to("cpu", memory_format=torch.contiguous_format), options.out)
    np.savez_compressed(
        options.out / "fashion_test.npz", x=test_x[:TEST_IMAGES], y=test_y[:TEST_IMAGES]
    )


if __name__ == "__main__":
    main()
