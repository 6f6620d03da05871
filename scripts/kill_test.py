"""Kill the program at every point where it changes a file, and look at what is left.

    python scripts/kill_test.py [--kills 100] [--commands external,sweep]

Each command is run again and again over an older output. It kills itself (SIGKILL) right before
its first change of a file, then before the second, and so on until it ends by itself; where
``--kills`` leaves room, further ones come after a random time. After each kill the output must be
the old or the new one, whole, and after one more run no temporary file may be left.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

CODE = """
import os, sys
sys.dont_write_bytecode = True
folder, fatal, count = os.getcwd(), int(sys.argv[1]), 0
names = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree"}
def watch(event, args):
    global count
    if event == "open":
        if not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
    elif event not in names:
        return
    if not isinstance(args[0], (str, bytes, os.PathLike)):
        return
    if not os.path.abspath(os.fsdecode(os.fspath(args[0]))).startswith(folder):
        return
    count += 1
    if count == fatal:
        os.kill(os.getpid(), 9)
sys.addaudithook(watch)
sys.argv[:2] = ["dacconv"]
from dacconv.cli.app import main
main()
"""
PLAIN = ("--force", "--no-verify")
VERIFIED = ("--force", "--samples", "1")


@dataclass(frozen=True, slots=True)
class Command:
    """A command line, what it writes, and how it is told apart whether that is whole."""

    line: tuple[str, ...]
    outputs: tuple[str, ...]
    older: tuple[str, ...]
    load: Callable[[Path], object]


def load_onnx(path: Path) -> object:
    """The weights of a model with its external data, checked by onnx and ONNX Runtime."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(path))
    onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    proto = onnx.load(path)
    return [
        (t.name, tuple(t.dims), onnx.numpy_helper.to_array(t).tobytes())
        for t in proto.graph.initializer
    ]


def load_json(path: Path) -> object:
    """The content of a JSON file; a sweep's without its times."""
    data = json.loads(path.read_text("utf-8"))
    points = data.get("points", []) if isinstance(data, dict) else []
    return [point.get("name", point.get("rank")) for point in points] or data


COMMANDS = {
    "convert": Command(
        ("convert", "net.onnx", "--rank", "2", *VERIFIED, "-o", "out.onnx"),
        ("out.onnx",), ("convert", "net.onnx", "--rank", "1", *PLAIN, "-o", "out.onnx"),
        load_onnx),
    "external": Command(
        ("convert", "large.onnx", "--rank", "2", *VERIFIED, "-o", "out.onnx"),
        ("out.onnx",), ("convert", "large.onnx", "--rank", "1", *PLAIN, "-o", "out.onnx"),
        load_onnx),
    "unverified": Command(
        ("convert", "large.onnx", "--rank", "2", *PLAIN, "-o", "out.onnx"),
        ("out.onnx",), ("convert", "large.onnx", "--rank", "1", *PLAIN, "-o", "out.onnx"),
        load_onnx),
    "run": Command(
        ("run", "release.toml", "--force"),
        ("dist/large.onnx",), ("run", "older.toml", "--force"), load_onnx),
    "sweep": Command(
        ("sweep", "net.onnx", "--ranks", "1,2", "--samples", "1", "--force", "-o", "out.json"),
        ("out.json",),
        ("sweep", "net.onnx", "--ranks", "1", "--samples", "1", "--force", "-o", "out.json"),
        load_json),
}  # fmt: skip


def make_models(folder: Path) -> None:
    """Two small nets, one of them with external data, and two releases."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> onnx.TensorProto:
        values = rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(values.astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "a"], ["1"], name="conv1", pads=[1] * 4),
        helper.make_node("Relu", ["1"], ["2"]),
        helper.make_node("Conv", ["2", "b"], ["y"], name="conv2"),
    ]
    values = [
        helper.make_tensor_value_info(name, 1, shape)
        for name, shape in (("x", (1, 3, 12, 12)), ("y", (1, 24, 10, 10)))
    ]
    tensors = [tensor("a", 16, 3, 3, 3), tensor("b", 24, 16, 3, 3)]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], tensors)
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.save(model, folder / "net.onnx")
    onnx.save(model, folder / "large.onnx", save_as_external_data=True, location="weights.data",
              size_threshold=100)  # fmt: skip
    for name, rank in (("release", 2), ("older", 1)):
        text = f'[jobs.one]\nmodel = "large.onnx"\nrank = {rank}\nsamples = 1\n'
        text += 'output = "dist/large.onnx"\n'
        (folder / f"{name}.toml").write_text(text)


def start(folder: Path, line: Sequence[str], fatal: int = 0) -> subprocess.Popen[bytes]:
    """The program in ``folder``, which kills itself before its change number ``fatal``."""
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(fatal), *line],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[bytes], seconds: float | None = None) -> int:
    """The exit code; with ``seconds`` it is killed after that time."""
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"{process.args}: {process.returncode}\n{errors.decode()}")
    return process.returncode


def temporaries(folder: Path) -> list[str]:
    """The temporary files and folders in ``folder``."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if ".dacconv-" in p.name)


def kill_command(name: str, kills: int, folder: Path) -> tuple[int, list[str]]:
    """Kill a command up to ``kills`` times; how often it was killed, and what was wrong."""
    command = COMMANDS[name]
    faults: list[str] = []
    (folder / "dist").mkdir(exist_ok=True)
    finish(start(folder, command.older))
    old = {output: command.load(folder / output) for output in command.outputs}
    saved = folder / "saved"
    finish(start(folder, command.line))
    new = {output: command.load(folder / output) for output in command.outputs}
    before = {str(p.relative_to(folder)) for p in folder.rglob("*")}
    rng, done, fatal, by_time = random.Random(0), 0, 0, False
    while done < kills:
        finish(start(folder, command.older))
        shutil.rmtree(saved, ignore_errors=True)
        fatal += 1
        if not by_time:
            by_time = finish(start(folder, command.line, fatal)) == 0
            if by_time:
                continue
        else:
            finish(start(folder, command.line), rng.uniform(0.1, 2.0))
        done += 1
        point = f"{name}, {'by time' if by_time else f'before change {fatal}'}"
        for output in command.outputs:
            try:
                state = command.load(folder / output)
            except Exception as error:  # whatever a torn file raises
                faults.append(f"{point}: {output} is torn: {error}")
                continue
            if state not in (old[output], new[output]):
                faults.append(f"{point}: {output} is neither the old nor the new one")
        finish(start(folder, command.line))
        if left := temporaries(folder):
            faults.append(f"{point}: left after the next run: {', '.join(left)}")
        extra = {str(p.relative_to(folder)) for p in folder.rglob("*")} - before
        if extra:
            faults.append(f"{point}: files that no run leaves: {', '.join(sorted(extra))}")
    return done, faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill every command; print a line for each, and what was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=100, help="kills, over all commands")
    parser.add_argument("--commands", default=",".join(COMMANDS))
    options = parser.parse_args(arguments)
    names = options.commands.split(",")
    faults: list[str] = []
    total = 0
    for index, name in enumerate(names):
        share = (options.kills - total) // (len(names) - index)
        with tempfile.TemporaryDirectory(prefix="dacconv-kill-") as folder:
            make_models(Path(folder))
            done, wrong = kill_command(name, share, Path(folder).resolve())
        total += done
        faults += wrong
        print(f"{name}: {done} kills, {len(wrong)} faults", flush=True)
    print(f"{total} kills, {len(faults)} faults", *faults, sep="\n")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
