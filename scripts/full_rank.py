"""Every real checkpoint at full rank: the same function, to rounding.

    .venv/bin/python scripts/full_rank.py [--only NAME]

Each file is converted by the command line with a rank above full rank, then the original and
the converted model are run here on the same real images (seeded noise where there are none),
ONNX without graph optimisation. At most 1e-5 relative (Frobenius) may lie between.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import measure
import numpy as np

ALLOWED = 1e-5
FULL = "1000000"
Net = Callable[[np.ndarray], list[np.ndarray]]


@dataclass(frozen=True, slots=True)
class Case:
    """A checkpoint, its class in archs.py where it is a state dict, and what goes in."""

    path: str
    images: Callable[[Path], np.ndarray]
    arch: str = ""


def cifar(folder: Path) -> np.ndarray:
    """Sixteen normalised RGB images, 32x32."""
    x = np.load(folder / "cifar10" / "test.npz")["x"][:16].astype(np.float32) / 255
    x = (x - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    return x.transpose(0, 3, 1, 2).astype(np.float32)


def imagenet(folder: Path) -> np.ndarray:
    """Four BGR images, 64x64 by repetition, minus the mean."""
    x = np.load(folder / "cifar10" / "test.npz")["x"][:4].repeat(2, 1).repeat(2, 2)
    x = x[..., ::-1].astype(np.float32) - np.array((103.939, 116.779, 123.68), np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def set12(folder: Path) -> np.ndarray:
    """One noisy grey image."""
    from PIL import Image

    path = sorted((folder / "denoise" / "set12").glob("*.png"))[0]
    x = np.asarray(Image.open(path), np.float32)[:128, :128] / 255
    return (x + np.random.default_rng(0).normal(0, 25 / 255, x.shape)).astype(np.float32)[
        None, None
    ]


def mnist(folder: Path) -> np.ndarray:
    """One digit, grey in 0..255."""
    data = gzip.decompress((folder / "onnx" / "t10k-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(data, np.uint8, 784, 16).astype(np.float32).reshape(1, 1, 28, 28)


def noise(*shape: int) -> Callable[[Path], np.ndarray]:
    """Seeded standard normal noise."""
    return lambda _: np.random.default_rng(0).standard_normal(shape).astype(np.float32)


CASES = {
    "resnet20": Case("cifar10/resnet20.th", cifar, "ResNet20"),
    "vgg16_probe": Case("cifar10/vgg16_probe.pth", imagenet, "VGG16Probe"),
    "dncnn_25": Case("denoise/dncnn_25.pth", set12, "DnCNN"),
    "open_nsfw": Case("onnx/open_nsfw.onnx", lambda _: 60 * noise(1, 224, 224, 3)(_)),
    "ultraface_rfb_320": Case("onnx/ultraface_rfb_320.onnx", noise(1, 3, 240, 320)),
    "ultraface_slim_320": Case("onnx/ultraface_slim_320.onnx", noise(1, 3, 240, 320)),
    "cntk_mnist": Case("onnx/cntk_mnist.onnx", mnist),
    "mnist_external": Case("onnx/mnist_external", lambda f: (mnist(f) / 255 - 0.1307) / 0.3081),
}


def torch_nets(arch: str, original: Path, converted: Path) -> tuple[Net, Net]:
    import archs  # beside this file
    import torch

    import dacconv

    first = getattr(archs, arch)()
    first.load_state_dict(archs.read_state(str(original)))
    second = dacconv.apply(getattr(archs, arch)(), converted)

    def runner(net: torch.nn.Module) -> Net:
        net.eval()

        @torch.no_grad()
        def run(x: np.ndarray) -> list[np.ndarray]:
            return [net(torch.from_numpy(x)).numpy()]

        return run

    return runner(first), runner(second)


def onnx_net(path: Path) -> Net:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})


def relative_error(first: Net, second: Net, x: np.ndarray) -> float:
    """The largest over the outputs."""
    pairs = zip(first(x), second(x), strict=True)
    return max(float(np.linalg.norm(b - a) / np.linalg.norm(a)) for a, b in pairs)


def examine(case: Case, folder: Path, made: Path) -> tuple[int, float, float]:
    """Layers converted, the error that dacconv reports, and the error measured here."""
    source = folder / case.path
    if source.is_dir():
        (source,) = source.glob("*.onnx")
    x = case.images(folder)
    out, report = made / f"out{source.suffix}", made / "report.json"
    command = [measure.DACCONV, "convert", str(source), "--rank", FULL, "--allow-costlier"]
    command += ["--force", "-o", str(out), "--json", str(report)]
    if case.arch:
        shape = ",".join(map(str, (1, *x.shape[1:])))
        command += ["--arch", f"{measure.ROOT / 'scripts' / 'archs.py'}:{case.arch}"]
        command += ["--input-shape", shape]
    measure.run(command)
    told = json.loads(report.read_text())
    layers = sum(1 for layer in told["layers"] if layer["rank"] is not None)
    nets = torch_nets(case.arch, source, out) if case.arch else (onnx_net(source), onnx_net(out))
    return layers, told["verification"]["relative_error"], relative_error(*nets, x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=CASES)
    options = parser.parse_args()
    folder = measure.data_folder()
    measure.title("Full rank on real checkpoints", "torch", "onnx", "onnxruntime", "numpy")
    rows, worst = [], 0.0
    for name in [options.only] if options.only else CASES:
        with tempfile.TemporaryDirectory() as made:
            layers, reported, measured = examine(CASES[name], folder, Path(made))
        worst = max(worst, reported, measured)
        rows.append((name, str(layers), f"{reported:.1e}", f"{measured:.1e}"))
        measure.progress(" | ".join(rows[-1]))
    print(measure.table(("file", "convs split", "reported", "measured on images"), rows))
    if not worst <= ALLOWED:
        measure.stop(f"a relative error above {ALLOWED:g}")


if __name__ == "__main__":
    main()
