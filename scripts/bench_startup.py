"""Whole processes against the least that such a process could do, side by side.

    .venv/bin/python scripts/bench_startup.py [--rounds 9] [help] [checkpoint] [onnx]

- ``dacconv --help`` against a typer hello-world: at most 1.5 x the time;
- ``dacconv convert`` of VGG16's checkpoint, all convs, rank 2, ``--no-verify``, against
  torch.load and torch.save of the same file: at most 1.5 x the time and the memory;
- the same of its ONNX export against onnx.load and onnx.save: at most 2 x the time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import measure

HELLO = """
import typer

def hello(name: str = "world") -> None:
    \"\"\"Say hello.\"\"\"
    print("hello", name)

typer.run(hello)
"""
TORCH = "import sys, torch; torch.save(torch.load(sys.argv[1], weights_only=True), sys.argv[2])"
ONNX = "import sys, onnx; onnx.save(onnx.load(sys.argv[1]), sys.argv[2])"


def help_text(folder: Path, rounds: int) -> None:
    hello = folder / "hello.py"
    hello.write_text(HELLO)
    commands = {
        "typer hello-world `--help`": [sys.executable, str(hello), "--help"],
        "`dacconv --help`": [measure.DACCONV, "--help"],
    }
    measure.title("dacconv --help", "typer", "rich")
    print(measure.comparison(commands, rounds), end="\n\n")


def convert(source: Path, baseline: str, label: str, folder: Path, rounds: int) -> None:
    copy, out = folder / f"copy{source.suffix}", folder / f"out{source.suffix}"
    options = ["--rank", "2", "--no-verify", "--force", "-o", str(out)]
    commands = {
        label: [sys.executable, "-c", baseline, str(source), str(copy)],
        "`dacconv convert`": [measure.DACCONV, "convert", str(source), *options],
    }
    print(measure.comparison(commands, rounds), end="\n\n")


def main() -> None:
    parts = ("help", "checkpoint", "onnx")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    if unknown := set(options.parts) - set(parts):
        parser.error(f"unknown: {', '.join(unknown)}")
    chosen = options.parts or parts
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "help" in chosen:
            help_text(folder, options.rounds)
        if "checkpoint" in chosen:
            checkpoint = measure.data_folder() / "cifar10" / "vgg16_probe.pth"
            measure.title("dacconv convert, VGG16's checkpoint, rank 2", "torch", "numpy")
            convert(checkpoint, TORCH, "`torch.load`, `torch.save`", folder, options.rounds)
        if "onnx" in chosen:
            checkpoint = measure.data_folder() / "cifar10" / "vgg16_probe.pth"
            model = folder / "vgg16.onnx"
            script = str(Path(__file__).with_name("export_onnx.py"))
            measure.run([sys.executable, script, "vgg16", str(checkpoint), str(model)])
            measure.title("dacconv convert, VGG16's ONNX export, rank 2", "onnx", "numpy")
            convert(model, ONNX, "`onnx.load`, `onnx.save`", folder, options.rounds)


if __name__ == "__main__":
    main()
