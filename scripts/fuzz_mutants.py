"""Seeds and mutators for ``fuzz.py``: small files of every format, and ways to damage them.

A mutant follows from its format and its number alone, so that it can be made again.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

NUMBERS = (0, 1, -1, 2, 3, 7, 255, 1 << 31, 1 << 62, (1 << 63) - 1, -(1 << 63), 1 << 64, 0.5, -0.0,
           1e308, 1e-320, float("nan"), float("inf"), float("-inf"))  # fmt: skip
RUN = "__import__('os').system('touch CANARY')"
"""An expression that the canaries of ``fuzz.py`` notice when something evaluates it."""
TEXTS = ("", "a", "conv1", "x" * 5000, "\x1b[31mred\x1b[0m", "a\nb", "::set-output name=a::b",
         "\x00", "\u202egnp", "\ud800", "=cmd|' /C calc'!A0", "../../CANARY", "/dev/zero",
         "os:system", "9**9**9**9", RUN, "torch.ops.aten.from_file.default", "torch.hub.load",
         "nan", "Symbol('s0', integer=True)", "eval", "%s%n", "{0.__class__}", "~", "-",
         "--force")  # fmt: skip
VALUES: tuple[Any, ...] = (*NUMBERS, *TEXTS, None, True, False, [], {}, [[]], [1, 2], {"a": 1})
PICKLE = b"\x80\x02cposix\nsystem\nX\x0c\x00\x00\x00touch CANARY\x85R."
_EXTRA = ("data/constants/opaque_obj_0", "models/other.json", "extra/a", "data/aotinductor/a.so",
          "code/a.py", "data/constants/tensor_9")  # fmt: skip

Mutate = Callable[[bytes, random.Random], bytes]


# -- seeds --------------------------------------------------------------------------------------


def make_seeds(folder: Path, run: Callable[[list[str]], object]) -> None:
    """Write the seeds into ``folder``; ``run`` runs the program there."""
    model = conv_net()
    onnx.save(model, folder / "a.onnx")
    onnx.save(other_net(), folder / "b.onnx")
    onnx.save(model, folder / "c.onnx", save_as_external_data=True, location="c.data",
              size_threshold=64)  # fmt: skip
    torch_seeds(folder)
    rng = np.random.default_rng(0)
    arrays = rng.random((4, 3, 8, 8), dtype=np.float32)
    np.savez(folder / "a.npz", x=arrays)
    np.savez_compressed(folder / "b.npz", x=arrays, y=np.arange(4))
    np.save(folder / "c.npy", arrays)
    from PIL import Image

    pixels = (rng.random((12, 10, 3)) * 255).astype(np.uint8)
    (folder / "images").mkdir()
    for name in ("a", "b", "c", "d"):
        Image.fromarray(pixels[..., 0] if name == "b" else pixels).save(
            folder / "images" / f"{name}.png"
        )
    run(["pack", "a.onnx", "--lossless", "-o", "a.dcz"])
    run(["pack", "b.onnx", "--bits", "4", "--calibrate", "none", "--no-verify", "-o", "b.dcz"])
    run(["convert", "a.onnx", "--rank", "1", "--dry-run", "--no-verify", "-o", "plan.json"])
    run(
        ["convert", "a.onnx", "--rank", "1", "-o", "d.onnx", "--no-verify", "--json", "report.json"]
    )
    run(["sweep", "a.onnx", "--ranks", "1,2", "--samples", "2", "-o", "sweep.json"])
    run(["sweep", "a.onnx", "--ranks", "1", "--samples", "2", "-o", "sweep.csv"])
    run(["convert", "net.pth", "--rank", "1", "--no-verify", "-o", "d.pth"])
    cases = {"conv1 dac 1 multiplier": {"original": 1e-4, "split": 2e-4}}
    text = json.dumps({"version": 1, "timings": {"a machine; onnxruntime 1; 1 thread": cases}})
    (folder / "times.json").write_text(text)
    (folder / "settings.toml").write_text(
        'rank = 1\nfirst-k = 2\nenergy-over = "mean"\nskip = ["fc*", "no"]\n'
        'method = "dac"\nform = "sum"\nseed = 3\nverify = false\nfuse = true\n'
    )
    (folder / "release.toml").write_text(
        'output-dir = "dist"\nreports = ["json"]\n[defaults]\nrank = 1\nverify = false\n'
        '[jobs.small]\nmodel = "a.onnx"\noutput = "models/small.onnx"\nlast-k = 1\n'
        '[jobs.weights]\nmodel = "net.pth"\nfirst-k = 2\nrank = 2\n'
    )


def conv_net() -> onnx.ModelProto:
    """Two convs with a BatchNorm and a sum, and a linear layer."""
    rng = np.random.default_rng(1)

    def weight(name: str, *shape: int) -> TensorProto:
        values = rng.standard_normal(shape, dtype=np.float32)
        return onnx.numpy_helper.from_array(values, name)

    norm = [weight(f"n{i}", 6) for i in range(3)] + [
        onnx.numpy_helper.from_array(np.ones(6, np.float32), "n3")
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], "conv1", pads=[1] * 4),
        helper.make_node("BatchNormalization", ["a", "n0", "n1", "n2", "n3"], ["b"], "bn1"),
        helper.make_node("Relu", ["b"], ["c"], "relu"),
        helper.make_node("Conv", ["c", "w2"], ["d"], "conv2", pads=[2, 1, 2, 1], dilations=[2, 1]),
        helper.make_node("Add", ["c", "d"], ["e"], "add"),
        helper.make_node("ConvTranspose", ["e", "w3"], ["f"], "up", strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["f"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["h"], "flat"),
        helper.make_node("Gemm", ["h", "w4", "b4"], ["y"], "fc", transB=1),
    ]
    weights = [weight("w1", 6, 3, 3, 3), weight("b1", 6), weight("w2", 6, 6, 3, 3),
               weight("w3", 6, 4, 2, 2), weight("w4", 5, 4), weight("b4", 5), *norm]  # fmt: skip
    return _model(nodes, weights, ["n", 3, 8, 8], ["n", 5])


def other_net() -> onnx.ModelProto:
    """Constants, a Pad, a local function, an If and a quantised weight."""
    kernel = np.random.default_rng(2).standard_normal((4, 3, 3, 3)).astype(np.float32)
    small = onnx.numpy_helper.from_array((kernel[:, :1].repeat(4, 1) * 50).astype(np.int8), "q")
    scale = onnx.numpy_helper.from_array(np.array(0.1, np.float32), "scale")
    pads = onnx.numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads")
    yes = onnx.numpy_helper.from_array(np.array(True), "yes")
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Relu", ["d"], ["inner"])], "b", [], [value])
    nodes = [
        helper.make_node("Constant", [], ["w"], value=onnx.numpy_helper.from_array(kernel)),
        helper.make_node("Pad", ["x", "pads"], ["a"], "pad", mode="reflect"),
        helper.make_node("Conv", ["a", "w"], ["b"], "conv1", kernel_shape=[3, 3]),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["v"]),
        helper.make_node("Conv", ["b", "v"], ["c"], "conv2", auto_pad="SAME_UPPER", strides=[2, 2]),
        helper.make_node("Twice", ["c"], ["d"], "twice", domain="own"),
        helper.make_node("If", ["yes"], ["y"], "if", then_branch=branch, else_branch=branch),
    ]
    model = _model(nodes, [small, scale, pads, yes], [1, 3, 8, 8], [1, 4, 4, 4])
    model.functions.append(
        helper.make_function("own", "Twice", ["p"], ["r"],
                             [helper.make_node("Add", ["p", "p"], ["r"])],
                             [helper.make_opsetid("", 17)])
    )  # fmt: skip
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def _model(
    nodes: list[Any], weights: list[TensorProto], takes: list[Any], gives: list[Any]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, takes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, gives)],
        weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def torch_seeds(folder: Path) -> None:
    """Programs of fixed and free sizes, before and after decompositions, and state dicts."""
    import torch
    from safetensors.torch import save_file
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
                        nn.Conv2d(6, 6, 3, stride=2, padding="valid"), nn.AdaptiveAvgPool2d(1),
                        nn.Flatten(), nn.Linear(6, 5)).eval()  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.zeros(2, 3, 10, 10)
        sizes = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
        fixed = torch.export.export(net, (x,))
        torch.export.save(fixed, folder / "a.pt2", extra_files={"labels.txt": "cat"})
        free = torch.export.export(net, (x,), dynamic_shapes=sizes)
        torch.export.save(free, folder / "b.pt2")
        torch.export.save(free.run_decompositions(), folder / "c.pt2")
    state = net.state_dict()
    torch.save(state, folder / "net.pth")
    torch.save({"epoch": 3, "state_dict": state, "best": 0.5}, folder / "checkpoint.pt")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "net.safetensors", metadata={"format": "pt"})


# -- mutators -----------------------------------------------------------------------------------


def mutate(name: str, data: bytes, rng: random.Random) -> bytes:
    """One to three changes to a file, by what its format is, or of bytes alone."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        own = _MUTATORS.get(name.rpartition(".")[2])
        try:
            data = own(data, rng) if own and rng.random() < 0.85 else change_bytes(data, rng)
        except Exception:  # an earlier change has left nothing that its format can be read from
            data = change_bytes(data, rng)
    return data


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, double, move or replace some bytes."""
    if not data:
        return rng.randbytes(rng.randrange(40))
    at, length = rng.randrange(len(data)), min(1 << rng.randrange(10), len(data))
    piece = data[at : at + length]
    match rng.randrange(8):
        case 0 | 1:
            changed = bytearray(data)
            for _ in range(rng.choice((1, 1, 2, 8))):
                changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            return bytes(changed)
        case 2:
            return data[:at]
        case 3:
            return data[:at] + data[at + length :]
        case 4:
            return data[:at] + piece + data[at:]
        case 5:
            return data[:at] + rng.randbytes(len(piece)) + data[at + len(piece) :]
        case 6:
            form, count = rng.choice((("<B", 1), ("<H", 2), ("<L", 4), ("<Q", 8)))
            number = rng.choice((0, 1, 255, 1 << 31, (1 << 63) - 1, (1 << 64) - 1))
            return data[:at] + struct.pack(form, number % (1 << 8 * count)) + data[at + count :]
    return data[:at] + rng.choice(TEXTS).encode("utf-8", "surrogatepass") + data[at:]


def change_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove, double or swap values of a JSON text."""
    value = change_value(json.loads(data), rng)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.9)
    if rng.random() < 0.03:
        text = "[" * 100_000
    if rng.random() < 0.03 and isinstance(value, dict) and value:
        text = "{" + json.dumps(next(iter(value))) + ": 0, " + text[1:]
    return text.encode("utf-8", "surrogatepass")


def change_value(value: Any, rng: random.Random) -> Any:
    """A copy of plain data with one of its values changed."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []
    _collect(value, places)
    if not places:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    match rng.randrange(7):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(TEXTS)] = holder.pop(key)
        case 1 | 2 if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        case 2 | 3:
            other, there = rng.choice(places)
            holder[key] = copy.deepcopy(other[there])
        case 4 if isinstance(holder[key], (int, float)):
            holder[key] = rng.choice(NUMBERS)
        case _:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def _collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in items:
        places.append((value, key))
        if isinstance(each, (dict, list)):
            _collect(each, places)


def change_archive(data: bytes, rng: random.Random) -> bytes:
    """Change a record of a zip archive, or which records there are; checksums stay right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(each, archive.read(each)) for each in archive.namelist()]
    at = rng.randrange(len(records))
    name, record = records[at]
    match rng.randrange(12):
        case 0:
            records.append((name, rng.choice((record, PICKLE, b""))))
        case 1:
            opaque = name.replace("weight_", "opaque_obj_")
            names = (name.upper(), f"../{name}", f"{name}/", f"{name}.pt", opaque, "a/b")
            records[at] = (rng.choice(names), record)
        case 2:
            del records[at]
        case 3:
            other = rng.randrange(len(records))
            records[at] = (name, records[other][1])
        case 4:
            records[at] = (name, rng.choice((PICKLE, b"", b"\x00" * (1 << 20))))
        case 5:
            root = name.partition("/")[0]
            records.append((f"{root}/{rng.choice(_EXTRA)}", rng.choice((PICKLE, b"{}", record))))
        case _:
            texts = [i for i, (each, _) in enumerate(records) if each.endswith(".json")]
            at = rng.choice(texts) if texts and rng.random() < 0.8 else at
            name, record = records[at]
            records[at] = (name, mutate(name, record, rng))
    packed = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(packed, "w", method) as archive:
        warnings.simplefilter("ignore")  # two records of one name
        for name, record in records:
            archive.writestr(zipfile.ZipInfo(name), record, method)
    return packed.getvalue()


def change_message(data: bytes, rng: random.Random) -> bytes:
    """Change one field of an ONNX model."""
    model = onnx.ModelProto.FromString(data)
    places: list[tuple[Any, Any]] = []
    _fields(model, places)
    message, fact = rng.choice(places)
    value = getattr(message, fact.name)
    if fact.is_repeated:
        at = rng.randrange(len(value))
        match rng.randrange(4):
            case 0:
                del value[at]
            case 1:
                value.extend([value[at]] * rng.choice((1, 3)))
            case _ if fact.message_type is None:
                value[at] = _scalar(fact, value[at], rng)
            case _:
                value[at].CopyFrom(rng.choice(value))
    elif fact.message_type is not None or rng.random() < 0.2:
        message.ClearField(fact.name)
    else:
        setattr(message, fact.name, _scalar(fact, value, rng))
    return bytes(model.SerializeToString())


def _fields(message: Any, places: list[tuple[Any, Any]]) -> None:
    for fact, value in message.ListFields():
        places.append((message, fact))
        if fact.message_type is not None:
            for each in value if fact.is_repeated else [value]:
                _fields(each, places)


def _scalar(fact: Any, value: Any, rng: random.Random) -> Any:
    """Another value of the same protobuf type."""
    if isinstance(value, str):
        return rng.choice(TEXTS).replace("\ud800", "?")
    if isinstance(value, bytes):
        return change_bytes(value, rng)
    if isinstance(value, float):
        return rng.choice(NUMBERS)
    bits = 31 if fact.cpp_type in (fact.CPPTYPE_INT32, fact.CPPTYPE_ENUM) else 63
    whole = [n for n in NUMBERS if isinstance(n, int) and -(1 << bits) <= n < 1 << bits]
    return rng.choice((*whole, *range(24), value + 1, -value))


def change_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Change the JSON header of a safetensors file, whose length stays right."""
    length = struct.unpack("<Q", data[:8])[0]
    header = change_json(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def change_packed(data: bytes, rng: random.Random) -> bytes:
    """Change the header or the streams of a packed model; its checksum stays right."""
    import zstandard

    at = 24 + struct.unpack("<Q", data[8:16])[0]
    header, streams = zstandard.ZstdDecompressor().decompress(data[24:at]), data[at:-32]
    if rng.random() < 0.6:
        header = change_json(header, rng)
    else:
        streams = change_bytes(streams, rng)
    squeezed = zstandard.ZstdCompressor().compress(header)
    body = data[:8] + struct.pack("<2Q", len(squeezed), len(header)) + squeezed + streams
    return body + hashlib.sha256(body).digest()


def change_png(data: bytes, rng: random.Random) -> bytes:
    """Change, double or remove a chunk of a PNG; checksums stay right."""
    chunks, at = [], 8
    while at < len(data):
        length, kind = struct.unpack(">L4s", data[at : at + 8])
        chunks.append((kind, data[at + 8 : at + 8 + length]))
        at += length + 12
    at = rng.randrange(len(chunks))
    kind, body = chunks[at]
    match rng.randrange(4):
        case 0:
            chunks.insert(at, chunks[at])
        case 1:
            del chunks[at]
        case _:
            chunks[at] = (rng.choice((kind, kind, kind, b"tEXt", b"acTL")), change_bytes(body, rng))
    return data[:8] + b"".join(
        struct.pack(">L4s", len(body), kind) + body + struct.pack(">L", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def change_lines(data: bytes, rng: random.Random) -> bytes:
    """Change a value, or remove, double or swap lines of a TOML or CSV text."""
    lines = data.decode("utf-8").splitlines()
    at = rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            del lines[at]
        case 1:
            lines.insert(rng.randrange(len(lines)), lines[at])
        case 2:
            cells = lines[at].split(",")
            cells[rng.randrange(len(cells))] = str(rng.choice(VALUES))
            lines[at] = ",".join(cells)
        case _:
            key, equals, _ = lines[at].partition("=")
            value = json.dumps(rng.choice(VALUES)) if rng.random() < 0.8 else "1979-05-27"
            lines[at] = f"{key}{equals} {value}"
    text = "\n".join(lines).replace("../", "")  # a user's own file may well name other folders
    return text.encode("utf-8", "surrogatepass")


_MUTATORS: Mapping[str, Mutate] = {
    "json": change_json, "onnx": change_message, "safetensors": change_safetensors,
    "dcz": change_packed, "png": change_png, "toml": change_lines, "csv": change_lines,
    **dict.fromkeys(("pt2", "pt", "pth", "npz"), change_archive),
}  # fmt: skip
