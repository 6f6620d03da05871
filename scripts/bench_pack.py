"""Packed size and top-1: dacconv pack beside zstd, gzip and, where it is installed, zipnn.

    .venv/bin/python scripts/bench_pack.py [resnet20 squeezenet vgg16 nsfw] [--bits 6 5] [--every 4]
    .venv/bin/python scripts/bench_pack.py --sizes      # lossless alone, nothing is run

The packed files are unpacked, and the accuracy is that of the unpacked file. ``nsfw`` has no labels
here: its score is how many photographs keep their class, and how far scores move at most.
``--zipnn FOLDER`` names a folder into which zipnn was installed with ``pip install --target``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import bench_accuracy
import measure
import numpy as np
import zstandard
from bench_dac_resnet20 import test_images

import dacconv
from dacconv.jobs.pack import pack_file, unpack_file
from dacconv.jobs.write import Target
from dacconv.settings import PackOptions, Settings

SCRIPTS = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Net:
    """A checkpoint, how a user opens it, and a score of the opened model, in percent."""

    path: Path
    settings: Settings
    score: Callable[[object], float]


def arch(name: str, size: str) -> dict[str, object]:
    return {"arch": f"{SCRIPTS / 'archs.py'}:{name}", "input_shape": (size,)}


def resnet20(data: Path, folder: Path, every: int) -> Net:
    x, y = test_images(data)
    settings = Settings(
        input_mean="0.485,0.456,0.406",
        input_std="0.229,0.224,0.225",
        **arch("ResNet20", "1,3,32,32"),
    )
    score = bench_accuracy.top1(x[::every], y[::every])
    return Net(data / "cifar10" / "resnet20.th", settings, score)


def squeezenet(data: Path, folder: Path, every: int) -> Net:
    settings = Settings(
        input_mean="103.939,116.779,123.68",
        input_range="0,255",
        input_order="bgr",
        **arch("SqueezeNet11", "1,3,224,224"),
    )
    score = bench_accuracy.squeezenet(folder, every).score
    return Net(data / "imagenet" / "squeezenet11.safetensors", settings, score)


def vgg16(data: Path, folder: Path, every: int) -> Net:
    settings = Settings(
        input_mean="103.939,116.779,123.68",
        input_range="0,255",
        **arch("VGG16Probe", "1,3,64,64"),
    )
    score = bench_accuracy.vgg16(folder, every).score
    return Net(data / "cifar10" / "vgg16_probe.pth", settings, score)


def nsfw(data: Path, folder: Path, every: int) -> Net:
    from PIL import Image

    mean = np.array((104.0, 117.0, 123.0), np.float32)
    photographs = np.stack([
        np.asarray(Image.open(p).convert("RGB"), np.float32)[..., ::-1] - mean
        for p in sorted((data / "imagenet" / "images").glob("*.jpg"))[::every]
    ])  # fmt: skip
    expected: list[np.ndarray] = []

    def score(model: object) -> float:
        run, name = model.runner(), model.inputs()[0].name
        scores = np.concatenate([
            next(iter(run({name: photographs[i : i + 20]}).values()))
            for i in range(0, len(photographs), 20)
        ])  # fmt: skip
        if not expected:
            expected.append(scores)
        moved = float(np.abs(scores - expected[0]).max())
        print(f"  largest change of a score: {moved:.4f}", flush=True)
        return 100 * float((scores.argmax(1) == expected[0].argmax(1)).mean())

    settings = Settings(
        input_mean="104,117,123", input_range="0,255", input_order="bgr", input_layout="nhwc",
        input_shape=("1,224,224,3",),
    )  # fmt: skip
    return Net(data / "onnx" / "open_nsfw.onnx", settings, score)


NETS = {"resnet20": resnet20, "squeezenet": squeezenet, "vgg16": vgg16, "nsfw": nsfw}
FILES = {
    "resnet20": "cifar10/resnet20.th",
    "squeezenet": "imagenet/squeezenet11.safetensors",
    "vgg16": "cifar10/vgg16_probe.pth",
    "nsfw": "onnx/open_nsfw.onnx",
}


def row(name: str, how: str, before: int, after: int, score: float | None = None) -> dict:
    text = "" if score is None else f"{score:.2f}"
    ratio = before / after
    print(f"| {name} | {how} | {after:,} | {ratio:.2f} x | {text} |", flush=True)
    return {"net": name, "how": how, "bytes": after, "ratio": ratio, "score": score}


def in_bfloat16(path: Path, folder: Path) -> Path:
    """The float tensors of a checkpoint of torch, in bfloat16."""
    import torch
    from safetensors.torch import load_file, save_file

    if path.suffix == ".safetensors":
        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
    out = folder / f"{path.stem}.bf16.safetensors"
    save_file({k: v.contiguous().bfloat16() for k, v in state.items()}, out)
    return out


def lossless(name: str, path: Path, folder: Path) -> list[dict]:
    """Sizes without loss, in the file's own dtype and in bfloat16."""
    rows = []
    paths = [path] if path.suffix == ".onnx" else [path, in_bfloat16(path, folder)]
    for each in paths:
        data = each.read_bytes()
        kind = f"{name}, bfloat16" if each is not path else name
        rows.append(row(kind, "as it is", len(data), len(data)))
        rows.append(row(kind, "gzip -9", len(data), len(gzip.compress(data, 9))))
        squeezed = zstandard.ZstdCompressor(level=19).compress(data)
        rows.append(row(kind, "zstd -19", len(data), len(squeezed)))
        peer = with_zipnn(each, "bfloat16" if each is not path else "float32")
        if peer is None:
            print(f"| {kind} | zipnn | not installed, or it crashed | | |", flush=True)
        else:
            rows.append(row(kind, "zipnn", len(data), peer))
        out = folder / "lossless.dcz"
        result = pack_file(each, PackOptions(lossless=True), Settings(), Target(out, force=True))
        rows.append(row(kind, "dacconv pack --lossless", result.before, result.after))
    return rows


ZIPNN = """
import sys
from zipnn import ZipNN
data = open(sys.argv[1], "rb").read()
print(len(ZipNN(bytearray_dtype=sys.argv[2], input_format="byte").compress(data)))
"""


def with_zipnn(path: Path, dtype: str) -> int | None:
    """The bytes that zipnn makes of a file; None where it is not installed or crashes.

    It runs in a process of its own, since it is native code that some files make crash.
    """
    command = [sys.executable, "-c", ZIPNN, str(path), dtype]
    paths = os.pathsep.join(sys.path)
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONPATH": paths})
    return int(done.stdout) if done.returncode == 0 and done.stdout else None


def packed(name: str, net: Net, options: PackOptions, how: str, folder: Path) -> dict:
    out, back = folder / "small.dcz", folder / f"back{net.path.suffix}"
    start = time.perf_counter()
    result = pack_file(net.path, options, net.settings, Target(out, force=True, keep=True))
    seconds = time.perf_counter() - start
    unpack_file(out, back, force=True)
    score = net.score(dacconv.load(back, **opening(net.settings)))
    print(f"  {seconds:.0f} s", flush=True)
    return row(name, how, result.before, result.after, score)


def opening(settings: Settings) -> dict[str, object]:
    return {"arch": settings.arch, "input_shapes": settings.load_options.input_shapes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nets", nargs="*", default=list(NETS), choices=list(NETS))
    parser.add_argument("--bits", type=int, nargs="*", default=[8, 6, 5])
    parser.add_argument("--sizes", action="store_true", help="lossless sizes alone")
    parser.add_argument("--calibrate", nargs="*", default=["synthetic"])
    parser.add_argument("--size", type=float, nargs="*", default=[])
    parser.add_argument("--every", type=int, default=1, help="score on every Nth test input")
    parser.add_argument("--zipnn", type=Path, help="the folder that zipnn was installed into")
    parser.add_argument("--json", type=Path, help="add the results to this file")
    options = parser.parse_args()
    if options.zipnn:
        sys.path.append(str(options.zipnn))
    measure.title("Packed files", "torch", "onnxruntime", "numpy", "constriction", "zstandard")
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), measure.data_folder()
        print("| net | how | bytes | smaller | score, % |\n| --- | --- | --- | --- | --- |")
        for each in options.nets:
            if options.sizes:
                rows += lossless(each, data / FILES[each], folder)
                continue
            net = NETS[each](data, folder, options.every)
            model = dacconv.load(net.path, **opening(net.settings))
            size = sum(path.stat().st_size for path in model.files)
            rows.append(row(each, "original", size, size, net.score(model)))
            for how in options.calibrate:
                settings = Settings(**{**given(net.settings), "calibrate": how})
                net = Net(net.path, settings, net.score)
                for bits in options.bits:
                    rows.append(packed(each, net, PackOptions(bits=bits), f"--bits {bits}, {how}",
                                       folder))  # fmt: skip
                for share in options.size:
                    rows.append(packed(each, net, PackOptions(size=share),
                                       f"--size {share:g}, {how}", folder))  # fmt: skip
    if options.json:
        old = json.loads(options.json.read_text()) if options.json.is_file() else []
        options.json.write_text(json.dumps([*old, *rows], indent=1))


def given(settings: Settings) -> dict[str, object]:
    return {**settings.changed(), "samples": 8}


if __name__ == "__main__":
    main()
