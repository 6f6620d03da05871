"""What ``make demo`` shows: the carried network, smaller and faster without any data.

The command is real; paste it to repeat it. The accuracy and the times are then taken here, by
ONNX Runtime alone. Results go to out/demo.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

ROOT = Path(__file__).resolve().parents[1]
NET = Path("tests/assets/fashion.onnx")
IMAGES = Path("tests/assets/fashion_test.npz")
OUT = Path("out/demo")
SCALE = ["--input-mean", "0.2860", "--input-std", "0.3530"]
BATCH = 250
ROUNDS = 60


def run(*arguments: str) -> None:
    """Run dacconv as a user would, its output on the terminal."""
    print(f"\n$ {shlex.join(['dacconv', *arguments])}", flush=True)
    command = [str(Path(sys.executable).with_name("dacconv")), *arguments]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if status:
        sys.exit(status)


def session(path: Path) -> onnxruntime.InferenceSession:
    """The network in ONNX Runtime, with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(ROOT / path, options, providers=["CPUExecutionProvider"])


def top1(net: onnxruntime.InferenceSession, x: np.ndarray, y: np.ndarray) -> float:
    """The share of images, in percent, whose highest logit is their label's."""
    starts = range(0, len(x), BATCH)
    guesses = [net.run(None, {"image": x[i : i + BATCH]})[0].argmax(1) for i in starts]
    return 100 * float((np.concatenate(guesses) == y).mean())


def speedup(
    before: onnxruntime.InferenceSession, after: onnxruntime.InferenceSession, x: np.ndarray
) -> float:
    """The median ratio of the processor times of one run each, in turns."""

    def seconds(net: onnxruntime.InferenceSession) -> float:
        started = time.thread_time()
        net.run(None, {"image": x})
        return time.thread_time() - started

    ratios = [seconds(before) / seconds(after) for _ in range(ROUNDS)]
    return statistics.median(ratios[ROUNDS // 10 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--macs", default="0.5", help="as dacconv convert takes it")
    parser.add_argument("--calibrate", default="synthetic", help="as dacconv convert takes it")
    options = parser.parse_args()
    started = time.monotonic()
    (ROOT / OUT).mkdir(parents=True, exist_ok=True)
    small, page = OUT / "fashion.dac.onnx", OUT / "report.html"
    choice = ["--macs", options.macs, "--calibrate", options.calibrate]
    run("convert", str(NET), *choice, "--data", str(IMAGES), *SCALE, "--force",
        "-o", str(small), "--html", str(page))  # fmt: skip

    held = np.load(ROOT / IMAGES)
    x = (held["x"][:, None].astype(np.float32) / 255 - 0.2860) / 0.3530
    x, y = x.astype(np.float32), held["y"]
    before, after = session(NET), session(small)
    accuracies = top1(before, x, y), top1(after, x, y)
    ratios = {batch: speedup(before, after, x[:batch]) for batch in (1, 16)}
    sizes = [(ROOT / path).stat().st_size / 1e6 for path in (NET, small)]
    print("\nMeasured here by ONNX Runtime alone, without dacconv:\n")
    print(f"  top-1, {len(y):,} test images   {accuracies[0]:.2f} % -> {accuracies[1]:.2f} %")
    for batch, ratio in ratios.items():
        print(f"  speed, one thread, batch {batch:<2}   {ratio:.2f} x")
    print(f"  file                       {sizes[0]:.2f} MB -> {sizes[1]:.2f} MB")
    print("\nNo image and no label was used to convert it; the test images only judge it.")
    print(f"The page of it all: {page}")
    print("Try next, with your own network:")
    print("  .venv/bin/dacconv convert model.onnx")
    print(f"({time.monotonic() - started:.0f} s)")


if __name__ == "__main__":
    main()
