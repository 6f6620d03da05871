"""What other tools merge and dacconv does, on the same files, as a Markdown table.

The other tools go into an environment of their own, outside the repository:

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install onnxslim onnxsim onnxoptimizer onnxruntime
    .venv/bin/python scripts/bench_fusions.py --peers /tmp/peers/bin/python

timm needs torch and torchvision beside it; leave ``--timm`` out where there is none:

    .venv/bin/python scripts/bench_fusions.py --peers ... --timm /tmp/timm/bin/python

Every file is counted by dacconv's own reader: convs (transposed ones too), linear layers, and
BatchNorms or constants per channel that are left. Outputs are compared with the original's in
ONNX Runtime without graph optimisation, or in torch, in float32.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import measure
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dacconv.errors import DacconvError

sys.path.insert(0, str(measure.ROOT / "tests"))

TOOLS = ("onnxoptimizer", "onnxsim", "onnxslim")
TIMM = ("repvgg_a0", "mobileone_s0", "fastvit_t8", "repvit_m0_9", "levit_128s", "repghostnet_050")
REAL = (
    "onnx/ultraface_rfb_320.onnx", "onnx/ultraface_slim_320.onnx", "onnx/open_nsfw.onnx",
    "onnx/cntk_mnist.onnx", "onnx/mnist_external/mnist.onnx",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Count:
    """What is left in a model, and how far its outputs are from the original's."""

    convs: int
    linears: int
    affines: int
    error: float | None = None

    def __str__(self) -> str:
        told = f"{self.convs} + {self.linears} + {self.affines}"
        return told if self.error is None else f"{told} ({self.error:.0e})"

    def less_than(self, other: Count) -> bool:
        mine = (self.convs, self.linears, self.affines)
        theirs = (other.convs, other.linears, other.affines)
        return any(a < b for a, b in zip(mine, theirs, strict=True))


def count(path: Path, error: float | None = None) -> Count:
    import dacconv

    model = dacconv.load(path)
    nodes = model.graph().nodes
    products = {n.output for n in nodes if n.op == "linear"}
    wide = [
        n
        for n in nodes
        if n.op == "affine"
        and (n.skip or model.affine(n.name).scale.size > 1)
        # the bias of a MatMul, which has no place for one
        and not (n.kind == "Add" and n.inputs[0] in products)
    ]
    return Count(
        sum(n.op in ("conv", "conv_transpose") for n in nodes),
        sum(n.op == "linear" for n in nodes),
        len(wide),
        error,
    )


def outputs(path: Path) -> list[np.ndarray]:
    """Of a seeded input, in the real runtime, the graph as it is written."""
    import dacconv

    model = dacconv.load(path)
    rng = np.random.default_rng(0)
    feeds = {
        spec.name: rng.normal(size=[size or 1 for size in spec.shape]).astype(spec.dtype)
        for spec in model.inputs()
    }
    if model.engine == "onnxruntime":
        return model.session(optimise=False, threads=1).run(None, feeds)
    return list(model.runner(threads=1)(feeds).values())


def error(made: Path, expected: list[np.ndarray]) -> float:
    """The largest difference over the largest value, worst of the outputs."""
    pairs = zip(outputs(made), expected, strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) for a, b in pairs)


def fuse(source: Path, target: Path) -> None:
    import dacconv
    from dacconv.fusions import fuse
    from dacconv.graph.types import Plan

    model, *_ = fuse(dacconv.load(source))
    model.save(target, provenance={}, plan=Plan(()))


def compare(source: Path, results: dict[str, Callable[[Path], object]]) -> dict[str, Count | str]:
    """The counts before and after each tool."""
    expected = outputs(source)
    row: dict[str, Count | str] = {"before": count(source)}
    for name, make in results.items():
        target = source.with_suffix(f".{name}{source.suffix}")
        try:
            make(target)
            row[name] = count(target, error(target, expected))
        except subprocess.CalledProcessError as fault:
            row[name] = f"fails: {(fault.stderr.strip().splitlines() or ['?'])[-1][:60]}"
        except DacconvError as fault:
            row[name] = f"not a valid model: {fault.what[:60]}"
    return row


def peer(python: str, *arguments: str) -> None:
    command = [python, str(Path(__file__).with_name("fusion_peers.py")), *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)


def onnx_rows(folder: Path, python: str) -> Iterator[tuple[str, dict[str, Count | str]]]:
    for source in files(folder):
        makers = {
            tool: lambda target, tool=tool, source=source: peer(
                python, tool, str(source), str(target)
            )
            for tool in TOOLS
        }
        makers["dacconv"] = lambda target, source=source: fuse(source, target)
        yield source.stem, compare(source, makers)


def timm_rows(folder: Path, python: str) -> Iterator[tuple[str, dict[str, Count | str]]]:
    for name in TIMM:
        peer(python, "timm", name, str(folder))
        source = folder / f"{name}.pt2"
        makers = {
            "timm": lambda target, name=name: (folder / f"{name}.timm.pt2").replace(target),
            "dacconv": lambda target, source=source: fuse(source, target),
        }
        yield name, compare(source, makers)


def files(folder: Path) -> Iterator[Path]:
    """Real files, networks in the form that they are trained in, and single patterns."""
    import torch
    from reparam_nets import NETS, build, export_onnx

    for name in REAL:
        source = measure.data_folder() / name
        target = folder / Path(name).name
        onnx.save(onnx.load(source), target)
        yield target
    yield from _copied(folder)
    for name in NETS:
        target = folder / f"{name}.onnx"
        export_onnx(build(name), str(target), torch.zeros(1, 3, 32, 32))
        yield target
    for name, nodes in PATTERNS.items():
        target = folder / f"{name}.onnx"
        onnx.save(pattern(*nodes), target)
        yield target


def _copied(folder: Path) -> Iterator[Path]:
    target = folder / "fashion.onnx"
    onnx.save(onnx.load(measure.ROOT / "tests" / "assets" / "fashion.onnx"), target)
    yield target


BN = ("BatchNormalization", (4,), (4,), (4,), (4,))
PATTERNS: dict[str, tuple[tuple, ...]] = {
    "conv, BatchNormalization": (("Conv", (4, 4, 3, 3)), BN),
    "depthwise conv, BatchNormalization": (("Conv", (4, 1, 3, 3), {"group": 4}), BN),
    "conv, Add": (("Conv", (4, 4, 3, 3)), ("Add", (1, 4, 1, 1))),
    "conv, Mul": (("Conv", (4, 4, 3, 3)), ("Mul", (1, 4, 1, 1))),
    "conv, Sub, Div": (("Conv", (4, 4, 3, 3)), ("Sub", (4, 1, 1)), ("Div", (4, 1, 1))),
    "ConvTranspose, BatchNormalization": (("ConvTranspose", (4, 4, 3, 3)), BN),
    "ConvTranspose, Add": (("ConvTranspose", (4, 4, 3, 3)), ("Add", (1, 4, 1, 1))),
    "BatchNormalization, conv": (BN, ("Conv", (4, 4, 3, 3))),
    "Mul, padded conv": (("Mul", (1, 4, 1, 1)), ("Conv", (4, 4, 3, 3), {"pads": [1] * 4})),
    "Pad, conv": (("Pad", [0, 0, 1, 1, 0, 0, 1, 1]), ("Conv", (4, 4, 3, 3))),
    "conv, Transpose, Mul, Add": (
        ("Conv", (4, 4, 3, 3)), ("Transpose", {"perm": [0, 2, 3, 1]}), ("Mul", (4,)), ("Add", (4,)),
    ),
    "Gemm, BatchNormalization": (("Flatten",), ("Gemm", (256, 4)), BN),
    "MatMul, Add (2 axes)": (("Flatten",), ("MatMul", (256, 4)), ("Add", (4,))),
    "MatMul, Add, Mul (4 axes)": (("MatMul", (8, 4)), ("Add", (4,)), ("Mul", (4,))),
    "Gemm, Mul": (("Flatten",), ("Gemm", (256, 4)), ("Mul", (4,))),
    "1x1, 3x3": (("Conv", (16, 4, 1, 1)), ("Conv", (4, 16, 3, 3))),
    "3x3, 1x1": (("Conv", (16, 4, 3, 3)), ("Conv", (4, 16, 1, 1))),
    "Gemm, Gemm": (("Flatten",), ("Gemm", (256, 64)), ("Gemm", (64, 4))),
}  # fmt: skip


def pattern(*steps: tuple) -> onnx.ModelProto:
    """A chain of operators with random constants, between a Relu at each end."""
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Relu", ["x"], ["v"])]
    tensors: list[TensorProto] = []
    value = "v"
    for index, (operator, *given) in enumerate(steps):
        attributes = next((each for each in given if isinstance(each, dict)), {})
        inputs = [value]
        for place, shape in enumerate(each for each in given if not isinstance(each, dict)):
            name = f"c{index}_{place}"
            array = rng.uniform(0.5, 1.5, shape) if isinstance(shape, tuple) else np.array(shape)
            kind = np.float32 if isinstance(shape, tuple) else np.int64
            tensors.append(numpy_helper.from_array(array.astype(kind), name))
            inputs.append(name)
        value = f"v{index}"
        nodes.append(helper.make_node(operator, inputs, [value], **attributes))
    nodes.append(helper.make_node("Relu", [value], ["y"]))
    graph = helper.make_graph(
        nodes,
        "pattern",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return onnx.shape_inference.infer_shapes(made)  # onnxsim wants the output's shape


def table(title: str, rows: list[tuple[str, dict[str, Count | str]]]) -> Iterator[str]:
    names = list(rows[0][1])
    yield f"### {title}\n"
    yield f"| file | {' | '.join(names)} |"
    yield "| --- " * (len(names) + 1) + "|"
    missed: list[str] = []
    for file, row in rows:
        yield f"| {file} | {' | '.join(str(row[name]) for name in names)} |"
        ours = row["dacconv"]
        for name in names[1:-1]:
            theirs = row[name]
            if isinstance(ours, Count) and isinstance(theirs, Count) and theirs.less_than(ours):
                missed.append(f"{file}: {name}")
    yield f"\nFewer of a kind left by another tool: {', '.join(missed) or 'nowhere'}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--peers", help="python with the ONNX tools")
    parser.add_argument("--timm", help="python with timm, torch and torchvision")
    parser.add_argument("--out", type=Path, help="the Markdown file to write")
    given = parser.parse_args()
    lines = ["Left in the file: convs + linear layers + BatchNorms and loose constants per "
             "channel (relative error).\n"]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        if given.peers:
            lines += table("ONNX", list(onnx_rows(Path(name), given.peers)))
        if given.timm:
            lines += table("torch.export", list(timm_rows(Path(name), given.timm)))
    text = "\n".join(lines)
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
