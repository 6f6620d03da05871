"""Accuracy and time of int8: ranges from generated inputs, noise and real ones; splits in int8.

    .venv/bin/python scripts/bench_precision.py accuracy resnet20 [--ways synthetic noise real]
    .venv/bin/python scripts/bench_precision.py accuracy squeezenet dncnn ultraface open_nsfw
    .venv/bin/python scripts/bench_precision.py time vgg16 resnet20 squeezenet [--threads 1,2]

Every conversion goes through the package as a user's would; only the noise is made here, since no
option asks for it: it has the mean and the standard deviation of the drawn images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import bench_accuracy
import measure
import numpy as np

import dacconv
from dacconv.calibration.inputs.pixels import InputOptions
from dacconv.calibration.prepare import CalibrationOptions
from dacconv.conversion import pipeline
from dacconv.conversion.range_inputs import RangeInputs, range_inputs
from dacconv.graph.precision import Precision
from dacconv.support.machine import cpu

ENOUGH = 64
"""Real inputs to measure ranges on."""
SPLITS = {
    "int8": {},
    "spatial, 36 %": {"macs": 0.36, "method": "spatial"},
    "spatial, 24 %": {"macs": 0.24, "method": "spatial"},
    "DAC, 36 %": {"macs": 0.36, "method": "dac"},
}
"""The splits that are timed, in fp32 and in int8."""


@dataclass(frozen=True, slots=True)
class Task:
    """A model, a score of it against the original, what is known of its input, and real inputs."""

    model: dacconv.Model
    score: Callable[[dacconv.Model], str]
    options: dict[str, object]
    real: np.ndarray | None


def onnx_of(net: str, folder: Path) -> Path:
    """A network of the shared checkpoints as ONNX."""
    data = measure.data_folder()
    checkpoints = {
        "resnet20": data / "cifar10" / "resnet20.th",
        "vgg16": data / "cifar10" / "vgg16_probe.pth",
        "dncnn": data / "denoise" / "dncnn_25.pth",
    }
    if net == "squeezenet":
        return squeezenet_onnx(folder)
    return bench_accuracy.exported(net, checkpoints[net], folder)


def squeezenet_onnx(folder: Path) -> Path:
    """SqueezeNet 1.1 as ONNX."""
    import archs
    import torch

    module = archs.SqueezeNet11()
    module.load_state_dict(
        archs.read_state(measure.data_folder() / "imagenet" / "squeezenet11.safetensors")
    )
    path = folder / "squeezenet.onnx"
    torch.onnx.export(module.eval(), (torch.zeros(1, 3, 224, 224),), str(path), dynamo=False,
                      opset_version=17, input_names=["image"],
                      dynamic_axes={"image": {0: "batch"}})  # fmt: skip
    return path


def photographs(every: int) -> tuple[np.ndarray, np.ndarray]:
    """RGB photographs ``(n, 224, 224, 3)`` in bytes, and their classes."""
    from PIL import Image

    files = sorted((measure.data_folder() / "imagenet" / "images").glob("*.jpg"))[::every]
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return images, np.array([int(file.stem) for file in files])


def scored(top1: Callable[[object], float]) -> Callable[[dacconv.Model], str]:
    return lambda model: f"{top1(model):.2f} %"


def resnet20(folder: Path, every: int) -> Task:
    x, y = bench_accuracy.test_images(measure.data_folder())
    options = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    held = np.load(measure.data_folder() / "cifar10" / "train_5000.npz")["x"][:ENOUGH]
    mean, std = (np.array(options[key], np.float32) for key in ("mean", "std"))
    real = ((held.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    model = dacconv.load(onnx_of("resnet20", folder))
    return Task(model, scored(bench_accuracy.top1(x[::every], y[::every])), options, real)


def squeezenet(folder: Path, every: int) -> Task:
    images, classes = photographs(1)
    mean = np.array((103.939, 116.779, 123.68), np.float32)
    x = np.ascontiguousarray((images[..., ::-1] - mean).transpose(0, 3, 1, 2), np.float32)
    kept = np.arange(len(x)) % 15 != 0
    score = scored(bench_accuracy.top1(x[kept][::every], classes[kept][::every], 50))
    options = {"mean": tuple(map(float, mean)), "range": (0.0, 255.0), "order": "bgr"}
    return Task(dacconv.load(onnx_of("squeezenet", folder)), score, options, x[~kept][:ENOUGH])


def dncnn(folder: Path, every: int) -> Task:
    psnr = bench_accuracy.dncnn(folder, every).score
    model = dacconv.load(onnx_of("dncnn", folder), input_shapes={"": (1, 1, 64, 64)})
    return Task(model, lambda model: f"{psnr(model):.3f} dB", {}, None)


def ultraface(folder: Path, every: int) -> Task:
    """The smallest IoU and the largest score difference of faces that fp32 finds over .7."""
    model = dacconv.load(measure.data_folder() / "onnx" / "ultraface_rfb_320.onnx")
    images, _ = photographs(every)
    x = np.stack([resized(image, 240, 320) for image in images])
    x = np.ascontiguousarray(((x - 127) / 128).transpose(0, 3, 1, 2), np.float32)
    name, reference = model.inputs()[0].name, model.runner()
    expected = [tuple(reference({name: one[None]}).values()) for one in x]

    def score(changed: dacconv.Model) -> str:
        run, overlaps, differences = changed.runner(), [], []
        for one, (scores, boxes) in zip(x, expected, strict=True):
            others, moved = run({name: one[None]}).values()
            found = scores[0, :, 1] > 0.7
            differences.append(np.abs(scores - others).max())
            overlaps.extend(overlap(boxes[0, found], moved[0, found]))
        low = f"{min(overlaps):.3f}" if overlaps else "no faces"
        return f"IoU {low} ({len(overlaps)} boxes), scores within {max(differences):.3f}"

    return Task(model, score, {"mean": (127.0,) * 3, "std": (128.0,) * 3, "range": (0.0, 255.0)},
                x[:ENOUGH])  # fmt: skip


def open_nsfw(folder: Path, every: int) -> Task:
    model = dacconv.load(measure.data_folder() / "onnx" / "open_nsfw.onnx")
    images, _ = photographs(every)
    mean = np.array((104, 117, 123), np.float32)
    x = np.ascontiguousarray(images[..., ::-1] - mean, np.float32)
    name, reference = model.inputs()[0].name, model.runner()
    expected = [next(iter(reference({name: one[None]}).values())) for one in x]

    def score(changed: dacconv.Model) -> str:
        run = changed.runner()
        off = [float(np.abs(next(iter(run({name: one[None]}).values())) - value).max())
               for one, value in zip(x, expected, strict=True)]  # fmt: skip
        return f"scores within {max(off):.4f}, mean {np.mean(off):.4f}"

    options = {"mean": tuple(map(float, mean)), "range": (0.0, 255.0), "order": "bgr"}
    return Task(model, score, options, np.moveaxis(x[:ENOUGH], -1, 1))


TASKS = {
    "resnet20": resnet20, "squeezenet": squeezenet, "dncnn": dncnn, "ultraface": ultraface,
    "open_nsfw": open_nsfw,
}  # fmt: skip


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((width, height)), np.float32)


def overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The intersection over union of boxes ``(n, 4)`` with their counterparts."""
    low, high = np.maximum(boxes[:, :2], others[:, :2]), np.minimum(boxes[:, 2:], others[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), 1)
    areas = [np.prod(each[:, 2:] - each[:, :2], 1) for each in (boxes, others)]
    return shared / np.maximum(areas[0] + areas[1] - shared, 1e-9)


def inputs_of(task: Task, way: str, folder: Path) -> RangeInputs | None:
    """The inputs to measure ranges on; None where a task has none of the kind."""
    input_options = InputOptions(**task.options)
    if way in ("synthetic", "distilled"):
        return range_inputs(task.model, CalibrationOptions(way, input_options))
    if way == "noise":
        from dacconv.calibration.prepare import choose_inputs

        drawn = choose_inputs(task.model, CalibrationOptions("synthetic", input_options),
                              lambda *_: None)  # fmt: skip
        rng = np.random.default_rng(0)

        def noise(batches: object) -> list[dict[str, np.ndarray]]:
            return [{name: rng.normal(a.mean(), a.std(), a.shape).astype(a.dtype)
                     for name, a in feeds.items()} for feeds in batches]  # fmt: skip

        return RangeInputs(noise(drawn.fitted), noise(drawn.held), (), "noise")
    if task.real is None:
        return None
    path = folder / "real.npy"
    np.save(path, task.real)
    return range_inputs(task.model, CalibrationOptions(str(path)))


def accuracy(names: list[str], ways: list[str], every: int) -> None:
    print(
        f"CPU: {cpu()}\n\n| model | ranges measured on | score | damage | fp32 layers | seconds |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            task = TASKS[name](folder, every)
            print(f"| {name} | (fp32) | {task.score(task.model)} | | | |", flush=True)
            for way in ways:
                start = time.perf_counter()
                inputs = inputs_of(task, way, folder)
                if inputs is None:
                    continue
                plan = dacconv.Plan((), precision=Precision("int8"))
                done = pipeline.convert(task.model, plan, inputs=inputs)
                seconds = time.perf_counter() - start
                check = done.report.precision
                kept = sum(e.precision == "fp32" for e in check.layers)
                print(
                    f"| {name} | {way} | {task.score(done.model)} | {check.damage:.2g} "
                    f"| {kept} of {len(check.layers)} | {seconds:.0f} |",
                    flush=True,
                )


def times(names: list[str], threads: tuple[int, ...]) -> None:
    """The original's time over that of splits in fp32 and in int8; ratios above 1 are faster."""
    print(f"CPU: {cpu()}\n\n| model | conversion | " + " | ".join(
        f"{n} thread{'s' if n > 1 else ''}" for n in threads) + " |")  # fmt: skip
    print("| --- | --- |" + " --- |" * len(threads))
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            original = onnx_of(name, folder)
            files: dict[str, Path] = {}
            for label, split in SPLITS.items():
                for precision in (None, "int8") if split else ("int8",):
                    settings = dict(split)
                    if precision:
                        settings["precision"] = precision
                    model = dacconv.load(original)
                    done = dacconv.convert(model, dacconv.plan(model, **settings))
                    text = label if not split else f"{label}, {precision or 'fp32'}"
                    files[text] = folder / f"{len(files)}.onnx"
                    done.save(files[text])
            result = dacconv.bench(original, *files.values(), threads=threads)
            for index, label in enumerate(files, 1):
                ratios = [case.timings[index].ratio for case in result.cases]
                cells = [f"{r.median:.2f} ({r.low:.2f}-{r.high:.2f})" for r in ratios]
                print(f"| {name} | {label} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("accuracy", "time"))
    parser.add_argument("names", nargs="+", choices=(*TASKS, "vgg16"))
    parser.add_argument("--ways", nargs="+", default=["synthetic", "noise", "real"])
    parser.add_argument("--every", type=int, default=1, help="score on every Nth test input")
    parser.add_argument("--threads", default="1,2")
    options = parser.parse_args()
    measure.title("Low precision", "onnxruntime", "numpy")
    if options.what == "accuracy":
        accuracy(options.names, options.ways, options.every)
    else:
        times(options.names, tuple(map(int, options.threads.split(","))))


if __name__ == "__main__":
    main()
