"""Draw docs/figures: the paper's two experiments, with top-1 on real test images.

    make figures

One layer at a time at each rank, and the first and last k layers, on the carried Fashion-MNIST
net and, where the real checkpoints are (``DACCONV_DATA``), on ResNet-20. Results are kept in
out/figures, so that what was measured is not measured again. No training, no calibration.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "tests" / "assets"
OUT = ROOT / "out" / "figures"
DOCS = ROOT / "docs" / "figures"
EVERY = 5
"""Every fifth CIFAR-10 test image is used."""


def run(*command: object) -> None:
    """Run a command as a user would; stop where it fails."""
    words = [str(word) for word in command]
    print(f"$ {shlex.join(words)}", flush=True)
    status = subprocess.run(words, cwd=ROOT, check=False).returncode
    if status:
        sys.exit(status)


def sweep(name: str, model: Path, data: Path, mean: str, std: str, jobs: int | None) -> None:
    """Both experiments on one network, and their figures as docs/figures/NAME-*.svg."""
    run(
        sys.executable, "-m", "dacconv", "sweep", model, "--mode", "single,first-k,last-k",
        "--ranks", "1-5", "--samples", 64, "--data", data, "--input-mean", mean,
        "--input-std", std, "-o", OUT / f"{name}.csv", "--plots", OUT / name,
        *(("--jobs", jobs) if jobs else ()),
    )  # fmt: skip
    for figure in sorted((OUT / name).glob("*.svg")):
        (DOCS / f"{name}-{figure.name}").write_bytes(figure.read_bytes())


def resnet20(jobs: int | None) -> None:
    """ResNet-20, written as ONNX, on every fifth test image."""
    folder = Path(os.environ.get("DACCONV_DATA", ROOT.parent / "shared" / "data")) / "cifar10"
    if not folder.is_dir():
        print(f"ResNet-20 is skipped: {folder} does not exist; set DACCONV_DATA", file=sys.stderr)
        return
    model, data = OUT / "resnet20.onnx", OUT / "cifar10.npz"
    if not model.exists():
        script = ROOT / "scripts" / "export_onnx.py"
        run(sys.executable, script, "resnet20", folder / "resnet20.th", model)
    if not data.exists():
        with np.load(folder / "test.npz") as held:
            np.savez(data, x=held["x"][::EVERY], y=held["y"][::EVERY])
    sweep("resnet20", model, data, "0.485,0.456,0.406", "0.229,0.224,0.225", jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, help="processes with a thread each")
    jobs = parser.parse_args().jobs
    for folder in (OUT, DOCS):
        folder.mkdir(parents=True, exist_ok=True)
    sweep("fashion", ASSETS / "fashion.onnx", ASSETS / "fashion_test.npz", "0.286", "0.353", jobs)
    resnet20(jobs)


if __name__ == "__main__":
    main()
