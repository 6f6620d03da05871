"""Top-1 over MACs saved: plain, allotted, synthetic, distilled and real inputs.

    .venv/bin/python scripts/bench_accuracy.py resnet20 [--macs 0.6 0.45 0.3] [--ways ...]
    .venv/bin/python scripts/bench_accuracy.py vgg16 --macs 0.6 0.47 0.4
    .venv/bin/python scripts/bench_accuracy.py dncnn --macs 0.6 0.45
    .venv/bin/python scripts/bench_accuracy.py fashion --macs 0.45 0.3
    .venv/bin/python scripts/bench_accuracy.py squeezenet --macs 0.65 --ways none auto real:64
    .venv/bin/python scripts/bench_accuracy.py plot RESULTS.json OUT.png

A way is ``uniform`` (the paper's DAC with the largest rank that fits), ``none`` (ranks allotted
by kernel errors), ``synthetic``, ``distilled``, ``auto`` or ``real`` (unlabelled training images).
Every conversion goes through the package as a user's would; ``--json`` adds to a file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import measure
import numpy as np
from bench_dac_resnet20 import test_images

import dacconv
from dacconv.calibration.inputs.pixels import InputOptions
from dacconv.calibration.prepare import Calibrated
from dacconv.conversion import pipeline

SCRIPTS = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Task:
    """A model, a score of it, what the user would say of its input, and unlabelled inputs."""

    model: object
    score: Callable[[object], float]
    options: dict[str, object]
    real: Callable[[Path, int], Path]
    unit: str


def exported(net: str, checkpoint: Path, folder: Path) -> Path:
    """The network as ONNX with its BatchNorm kept."""
    out = folder / f"{net}.onnx"
    script = str(SCRIPTS / "export_onnx.py")
    measure.run([sys.executable, script, net, str(checkpoint), str(out)])
    return out


def top1(x: np.ndarray, y: np.ndarray, batch: int = 250) -> Callable[[object], float]:
    def score(model: object) -> float:
        run, name = model.runner(), model.inputs()[0].name
        guesses = [
            next(iter(run({name: x[i : i + batch]}).values())).argmax(1)
            for i in range(0, len(x), batch)
        ]
        return 100 * float((np.concatenate(guesses) == y).mean())

    return score


def resnet20(folder: Path, every: int) -> Task:
    data = measure.data_folder()
    x, y = test_images(data)
    model = dacconv.load(exported("resnet20", data / "cifar10" / "resnet20.th", folder))

    def real(folder: Path, count: int) -> Path:
        held = np.load(data / "cifar10" / "train_5000.npz")["x"][:count]
        path = folder / f"real{count}.npz"
        np.savez(path, x=held)
        return path

    options = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    return Task(model, top1(x[::every], y[::every]), options, real, "top-1, %")


def resnet20_folded(folder: Path, every: int) -> Task:
    """The same network with its BatchNorm merged into the convs, as most ONNX files have it."""
    task = resnet20(folder, every)
    path = folder / "folded.onnx"
    dacconv.fuse(task.model).save(path)
    return replace(task, model=dacconv.load(path))


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """BGR minus ImageNet's mean, bilinear at ``side``; ``(n, 3, side, side)`` float32."""
    import torch

    bgr = torch.from_numpy(images[..., ::-1].astype(np.float32)).permute(0, 3, 1, 2)
    made = torch.nn.functional.interpolate(bgr, (side, side), mode="bilinear")
    mean = torch.tensor((103.939, 116.779, 123.68)).view(1, 3, 1, 1)
    return (made - mean).numpy()


def vgg16(folder: Path, every: int) -> Task:
    data = measure.data_folder()
    held = np.load(data / "cifar10" / "test.npz")
    step = 5 * every
    x, y = resized(held["x"][::step], 64), held["y"][::step]
    path = measure.data_folder() / "cifar10" / "vgg16_probe.pth"
    arch = f"{SCRIPTS / 'archs.py'}:VGG16Probe"
    model = dacconv.load(path, arch=arch, input_shapes={"": (1, 3, 64, 64)})

    def real(folder: Path, count: int) -> Path:
        made = resized(np.load(data / "cifar10" / "train_5000.npz")["x"][:count], 64)
        path = folder / f"real{count}.npy"
        np.save(path, made)
        return path

    options = {"mean": (103.939, 116.779, 123.68), "range": (0.0, 255.0)}
    return Task(model, top1(x, y, 50), options, real, "top-1, %")


def dncnn(folder: Path, every: int) -> Task:
    from PIL import Image

    data = measure.data_folder() / "denoise"
    arch = f"{SCRIPTS / 'archs.py'}:DnCNN"
    model = dacconv.load(data / "dncnn_25.pth", arch=arch, input_shapes={"": (1, 1, 64, 64)})
    clean = [np.asarray(Image.open(p).convert("L"), np.float32) / 255
             for p in sorted((data / "set12").glob("*.png"))][::every]  # fmt: skip
    pairs = []
    for image in clean:
        np.random.seed(0)
        pairs.append((image, image + np.random.normal(0, 25 / 255, image.shape)))

    def score(model: object) -> float:
        run, name = model.runner(), model.inputs()[0].name
        found = []
        for image, noisy in pairs:
            given = noisy.astype(np.float32)[None, None]
            made = np.clip(given - next(iter(run({name: given}).values())), 0, 1)[0, 0]
            found.append(-10 * np.log10(float(((made - image) ** 2).mean())))
        return float(np.mean(found))

    def none(folder: Path, count: int) -> Path:
        measure.stop("there are no training images for DnCNN")

    return Task(model, score, {}, none, "PSNR, dB")


def fashion(folder: Path, every: int) -> Task:
    assets = measure.ROOT / "tests" / "assets"
    held = np.load(assets / "fashion_test.npz")
    x = ((held["x"].astype(np.float32) / 255 - 0.2860) / 0.3530)[:, None]

    def none(folder: Path, count: int) -> Path:
        measure.stop("there are no training images of Fashion-MNIST here")

    options = {"mean": (0.2860,), "std": (0.3530,)}
    model = dacconv.load(assets / "fashion.onnx")
    return Task(model, top1(x[::every], held["y"][::every]), options, none, "top-1, %")


def squeezenet(folder: Path, every: int) -> Task:
    """1,000 photographs; real inputs are every 15th of them, and the others are scored."""
    from PIL import Image

    data = measure.data_folder() / "imagenet"
    arch = f"{SCRIPTS / 'archs.py'}:SqueezeNet11"
    model = dacconv.load(
        data / "squeezenet11.safetensors", arch=arch, input_shapes={"": (1, 3, 224, 224)}
    )
    mean = np.array((103.939, 116.779, 123.68), np.float32)
    photographs = np.stack([
        np.asarray(Image.open(p).convert("RGB"), np.float32)[..., ::-1] - mean
        for p in sorted((data / "images").glob("*.jpg"))
    ]).transpose(0, 3, 1, 2)  # fmt: skip
    scored = np.arange(len(photographs)) % 15 != 0

    def real(folder: Path, count: int) -> Path:
        path = folder / f"real{count}.npy"
        np.save(path, photographs[~scored][:count])
        return path

    x, y = photographs[scored][::every], np.arange(len(photographs))[scored][::every]
    options = {"mean": tuple(map(float, mean)), "range": (0.0, 255.0), "order": "bgr"}
    return Task(model, top1(np.ascontiguousarray(x), y, 50), options, real, "top-1, %")


CURVES = {
    "distilled": "256 distilled images",
    "synthetic": "64 synthetic images",
    "real:64": "64 unlabelled training images",
    "none": "ranks allotted by kernel errors",
    "uniform": "plain DAC, one rank",
}
"""What the curves of the plot are called."""
ORIGINAL = 91.73
"""ResNet-20's top-1."""
TASKS = {
    "resnet20": resnet20, "resnet20-folded": resnet20_folded, "vgg16": vgg16, "dncnn": dncnn,
    "fashion": fashion, "squeezenet": squeezenet,
}  # fmt: skip


def uniform_rank(model: object, macs: float) -> int:
    """The largest rank that keeps the whole network within the budget."""
    fits = [1]
    for rank in range(1, 10):
        report = pipeline.preview(model, dacconv.plan(model, rank=rank))
        if 1 - report.saving() <= macs:
            fits.append(rank)
    return max(fits)


def calibrate(task: Task, way: str, folder: Path, images: int | None) -> Calibrated | None:
    """What the way calibrates on: nothing for ``uniform`` and ``none``."""
    kind, _, count = way.partition(":")
    if kind == "uniform":
        return None
    number = int(count) if count else images
    scaled = {} if kind == "auto" else task.options
    how = str(task.real(folder, number or 64)) if kind == "real" else kind
    if how.endswith(".npy"):
        scaled = {}
    options = InputOptions(images=number, **scaled)
    return dacconv.calibrate(task.model, how, options=options)[0]


def convert(
    task: Task, way: str, macs: float, calibrated: Calibrated | None, method: str | None
) -> dict:
    """One conversion and its score; the seconds are without the calibration inputs."""
    start = time.perf_counter()
    model = task.model
    if way == "uniform":
        plan = dacconv.plan(model, rank=uniform_rank(model, macs))
        done = dacconv.convert(model, plan)
    else:
        plan = dacconv.plan(model, macs=macs, calibrated=calibrated, method=method)
        done = dacconv.convert(model, plan, calibrated=calibrated)
    seconds = time.perf_counter() - start
    check = done.report.calibration
    return {
        "way": way,
        "macs": macs,
        "saved": done.report.saving(),
        "score": task.score(done.model),
        "seconds": seconds,
        "taken": None if check is None else check.taken,
        "held_out": None if check is None else [check.plain_error, check.error],
        "ranks": {c.layer: [c.method, *c.rank] for c in plan.choices},
    }


def plot(results: Path, out: Path) -> None:
    """The curve of every way in a file of ResNet-20's results."""
    from dacconv.reports.plots import save_as, style
    from dacconv.reports.plots.marks import marker
    from dacconv.reports.plots.sweep import COLOURS

    rows = json.loads(results.read_text())
    with style.style():
        figure, axes = style.new_figure(7.0, 4.5)
        ways = [way for way in CURVES if any(row["way"] == way for row in rows)]
        for index, way in enumerate(ways):
            mine = sorted((r["saved"], r["score"]) for r in rows if r["way"] == way)
            axes.plot(
                [100 * s for s, _ in mine], [score for _, score in mine], marker=marker(index),
                color=COLOURS[index], lw=1.4, ms=5, label=CURVES[way],
            )  # fmt: skip
        axes.axhline(ORIGINAL, color=style.GREY, lw=1, ls="--")
        axes.annotate("original", (41, ORIGINAL), xytext=(0, 3), textcoords="offset points")
        axes.set(xlabel="MACs saved, %", ylabel="top-1 on 10,000 test images, %", ylim=(0, 100))
        axes.legend(loc="lower left")
    save_as(figure, out)


def main() -> None:
    if sys.argv[1:2] == ["plot"]:
        plot(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--macs", type=float, nargs="+", default=[0.6, 0.45, 0.3])
    parser.add_argument("--ways", nargs="+", default=["uniform", "none", "synthetic", "distilled"])
    parser.add_argument("--method", help="the methods that a budget chooses from (all)")
    parser.add_argument("--images", type=int, help="calibration inputs; WAY:N says it for one way")
    parser.add_argument("--every", type=int, default=1, help="score on every Nth test input")
    parser.add_argument("--json", type=Path, help="add the results to this file")
    options = parser.parse_args()
    measure.title(f"Accuracy over MACs saved: {options.task}", "torch", "onnxruntime", "numpy")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = TASKS[options.task](folder, options.every)
        print(f"original: {task.score(task.model):.2f} ({task.unit})\n", flush=True)
        print("| MACs saved | inputs | " + task.unit + " | seconds |\n| --- | --- | --- | --- |")
        for way in options.ways:
            calibrated = calibrate(task, way, folder, options.images)
            for macs in options.macs:
                row = convert(task, way, macs, calibrated, options.method)
                kept = "" if row["taken"] in (None, True) else " (plain kept)"
                print(
                    f"| {100 * row['saved']:.1f} % | {way}{kept} | {row['score']:.2f} "
                    f"| {row['seconds']:.0f} |",
                    flush=True,
                )
                if options.json:
                    old = json.loads(options.json.read_text()) if options.json.is_file() else []
                    options.json.write_text(json.dumps([*old, row], indent=1))


if __name__ == "__main__":
    main()
