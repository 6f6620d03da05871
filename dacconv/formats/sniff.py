"""The kind of a file, by its first bytes, without a framework and without running anything.

``kind`` names the formats that dacconv opens; every other kind of file ends in one
:class:`FormatError` that says what the file is and how to convert it to a format that works.
"""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Literal

from dacconv.errors import FormatError
from dacconv.support.archives import Archive, ArchiveError

Kind = Literal["onnx", "pt2", "torch", "safetensors"]

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""``torch.save`` before version 1.6: the pickled number 0x1950a86a20f9469cfc6c."""

SUFFIXES: dict[str, Kind] = {
    ".onnx": "onnx",
    ".pt2": "pt2",
    ".pt": "torch",
    ".pth": "torch",
    ".th": "torch",
    ".ckpt": "torch",
    ".safetensors": "safetensors",
}
TAKES = (
    "dacconv takes ONNX (.onnx), torch.export (.pt2), torch.save (.pt, .pth, .th) and .safetensors"
)
_EXPORT = "export the network to ONNX, or save its state_dict with torch.save, and convert that"
_TF = "convert it to ONNX first: python -m tf2onnx.convert (see its --help for this format)"

# (offset, magic, description, how to get to a format that works)
_MAGICS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as a Keras .h5 model", _TF),
    (4, b"TFL3", "a TensorFlow Lite model", "convert the model it was made from to ONNX (tf2onnx)"),
    (0, b"GGUF", "a GGUF file", _EXPORT),
    (0, b"\x93NUMPY", "a NumPy array", _EXPORT),
    (0, b"\x89DCZ\r\n\x1a\n", "a packed model", "unpack it first: dacconv unpack"),
    (0, b"\x1f\x8b", "gzip-compressed", "unpack it first: gunzip"),
    (0, b"BZh", "bzip2-compressed", "unpack it first: bunzip2"),
    (0, b"\xfd7zXZ\x00", "xz-compressed", "unpack it first: unxz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed", "unpack it first: unzstd"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "unpack it first"),
    (0, b"\x7fELF", "a program or compiled library", "give the checkpoint it was built from"),
    (0, b"%PDF", "a PDF document", TAKES),
    (0, b"\x89PNG", "an image", TAKES),
    (0, b"\xff\xd8\xff", "an image", TAKES),
    (0, b"ORTM", "an ORT-format model", "give the .onnx file it was made from"),
    (4, b"ORTM", "an ORT-format model", "give the .onnx file it was made from"),
)
_BY_SUFFIX: dict[str, tuple[str, str]] = {
    ".pb": ("a TensorFlow graph (SavedModel or frozen)", _TF),
    ".mlmodel": ("a Core ML model", "give the PyTorch or ONNX model it was made from"),
    ".caffemodel": ("a Caffe model", "convert it to ONNX first"),
    ".params": ("an MXNet parameter file", "export the network to ONNX first"),
    ".pdmodel": ("a Paddle model", "convert it to ONNX first: paddle2onnx"),
    ".pdiparams": ("a Paddle parameter file", "convert the model to ONNX first: paddle2onnx"),
    ".engine": ("a TensorRT engine", "give the ONNX model it was built from"),
    ".trt": ("a TensorRT engine", "give the ONNX model it was built from"),
    ".mnn": ("an MNN model", "give the ONNX model it was made from"),
    ".weights": ("a Darknet weights file", "export the network to ONNX first"),
    ".data": (
        "a data file, perhaps the external weights of an ONNX model",
        "give the .onnx file instead",
    ),
}


def kind(path: Path) -> Kind:
    """The format of the file at ``path``.

    Raises:
        FormatError: the file is missing, unreadable, empty, or of a kind that is not taken.
    """
    head = _head(path)
    by_content = _by_content(path, head)
    if by_content is not None:
        return by_content
    suffix = path.suffix.lower()
    if suffix in _BY_SUFFIX:
        description, hint = _BY_SUFFIX[suffix]
        raise _refusal(path, description, hint)
    if suffix in SUFFIXES:
        by_name = SUFFIXES[suffix]
        if by_name == "onnx":  # protobuf has no magic number: the parser decides
            return by_name
        raise FormatError(
            f"not a {suffix} file: its first bytes are those of no known format",
            where=str(path),
            hint="the file is damaged, or is something else under this name",
        )
    raise FormatError("not a model file that dacconv knows", where=str(path), hint=TAKES)


def _head(path: Path) -> bytes:
    """The first bytes of a regular, readable file that has any."""
    where = str(path)
    try:
        if path.is_dir():
            raise _directory(path)
        if not path.exists():
            raise FormatError("no such file", where=where, hint="check the path")
        if not path.is_file():
            raise FormatError("not a regular file", where=where, hint=TAKES)
        with path.open("rb") as stream:
            head = stream.read(4096)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FormatError(f"cannot be read: {reason}", where=where) from error
    if not head:
        raise FormatError(
            "the file is empty", where=where, hint="a download or copy that did not finish?"
        )
    return head


def _directory(path: Path) -> FormatError:
    where = str(path)
    if (path / "saved_model.pb").exists():
        return FormatError("a TensorFlow SavedModel folder", where=where, hint=_TF)
    if path.suffix == ".mlpackage":
        hint = "give the PyTorch or ONNX model it was made from"
        return FormatError("a Core ML package", where=where, hint=hint)
    inside = sorted(p.name for p in path.iterdir() if p.suffix.lower() in SUFFIXES)[:5]
    hint = f"give a file in it: {', '.join(inside)}" if inside else TAKES
    return FormatError("a folder, not a file", where=where, hint=hint)


def _by_content(path: Path, head: bytes) -> Kind | None:
    """The kind that the first bytes show; None if they do not show it."""
    for offset, magic, description, hint in _MAGICS:
        if head[offset : offset + len(magic)] == magic:
            raise _refusal(path, description, hint)
    if head[:4] == b"PK\x03\x04" or head[:4] == b"PK\x05\x06":
        return _zip(path)
    if head.startswith(LEGACY_MAGIC):
        return "torch"
    if head[257:262] == b"ustar":
        return _tar(path)
    if _is_safetensors(path, head):
        return "safetensors"
    if _is_onnx(path, head):
        return "onnx"
    if head[:1] == b"\x80" and head[1] in (2, 3, 4, 5):
        raise _refusal(
            path,
            "a plain Python pickle, not written by torch.save",
            "load it where it was made and save the weights with torch.save(state_dict, path)",
        )
    _refuse_text(path, head)
    return None


def _zip(path: Path) -> Kind:
    """The kind of a zip archive."""
    try:
        with Archive(path) as archive:
            names = list(archive.records)
    except (OSError, ArchiveError) as error:
        raise FormatError(
            f"a zip archive (as torch.save writes) that is cut short or damaged: {error}",
            where=str(path),
            hint="copy or download it again",
        ) from error
    tails = {name.partition("/")[2] for name in names}
    old_export = any(name.endswith("serialized_exported_program.json") for name in names)
    if "archive_format" in tails or old_export:
        return "pt2"
    if "constants.pkl" in tails or any(tail.startswith("code/") for tail in tails):
        raise _refusal(
            path,
            "a TorchScript archive",
            "dacconv cannot edit TorchScript: build the nn.Module and save its state_dict with\n"
            "  torch.save(net.state_dict(), path) or torch.export.save, or export it to ONNX",
        )
    if any(tail.startswith(".data/extern_modules") for tail in tails):
        raise _refusal(path, "a torch.package archive", "save the module's state_dict instead")
    if "data.pkl" in tails:
        return "torch"
    if {"config.json", "model.weights.h5"} <= set(names):
        raise _refusal(path, "a Keras 3 model (.keras)", "export it: model.export(path, 'onnx')")
    if names and all(name.endswith(".npy") for name in names):
        raise _refusal(path, "a NumPy .npz archive", _EXPORT)
    hint = f"unpack it and give the model inside; {TAKES}"
    raise _refusal(path, "a zip archive with no model that dacconv knows", hint)


def _tar(path: Path) -> Kind:
    hint = "unpack it and give the model inside; a checkpoint of PyTorch 0.1 must be saved again"
    raise _refusal(path, "a tar archive", f"{hint} by torch.load and torch.save")


def _is_safetensors(path: Path, head: bytes) -> bool:
    """Eight bytes of length, then a JSON object."""
    if len(head) < 10:
        return False
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and head[9:10] in b'"} \n' and 2 <= length <= 100_000_000


def _is_onnx(path: Path, head: bytes) -> bool:
    """A plausible start of a ModelProto: ir_version, then another of its fields.

    A TensorFlow SavedModel starts with the same bytes as IR version 1, so its suffix decides.
    """
    suffix = path.suffix.lower()
    if suffix in _BY_SUFFIX and suffix != ".data":
        return False
    return (
        len(head) > 3
        and head[0] == 0x08
        and 1 <= head[1] <= 30
        and head[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72)
    )


def _refuse_text(path: Path, head: bytes) -> None:
    """Raise FormatError if the file is text; the message says of which kind."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return
    if any(ord(c) < 32 and c not in "\t\r\n\f" for c in text):
        return
    start = text.lstrip("\ufeff \t\r\n").lower()
    if start.startswith("version https://git-lfs"):
        raise _refusal(path, "a Git LFS pointer, not the file itself", "fetch it: git lfs pull")
    if start.startswith(("<!doctype html", "<html")):
        raise _refusal(path, "a web page", "the download went wrong: fetch the file itself")
    if start.startswith("<?xml") and "<net" in start:
        hint = "give the ONNX model it was made from"
        raise _refusal(path, "an OpenVINO IR description", hint)
    raise _refusal(path, "a text file", TAKES)


def _refusal(path: Path, description: str, hint: str) -> FormatError:
    message = f"this is {description}, which dacconv does not convert"
    return FormatError(message, where=str(path), hint=hint)
