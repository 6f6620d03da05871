from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dacconv.errors import FormatError
from dacconv.formats import open_model
from dacconv.formats.sniff import kind


def zipped(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "/").replace("DOT", "."), data)
    return path


def weights() -> dict[str, torch.Tensor]:
    return {"0.weight": torch.zeros(4, 3, 3, 3)}


class TestKind:
    def test_torch_zip(self, tmp_path: Path) -> None:
        torch.save(weights(), tmp_path / "a.bin")
        assert kind(tmp_path / "a.bin") == "torch"

    def test_torch_legacy(self, tmp_path: Path) -> None:
        torch.save(weights(), tmp_path / "a.th", _use_new_zipfile_serialization=False)
        assert kind(tmp_path / "a.th") == "torch"

    def test_safetensors_under_another_name(self, tmp_path: Path) -> None:
        save_file(weights(), tmp_path / "a.pt")
        assert kind(tmp_path / "a.pt") == "safetensors"

    def test_export(self, tmp_path: Path) -> None:
        program = torch.export.export(nn.Conv2d(3, 4, 3).eval(), (torch.zeros(1, 3, 5, 5),))
        torch.export.save(program, tmp_path / "a.pt2")
        (tmp_path / "a.pt2").rename(tmp_path / "a.pt")
        assert kind(tmp_path / "a.pt") == "pt2"

    def test_onnx_by_bytes(self, tmp_path: Path) -> None:
        (tmp_path / "model").write_bytes(b"\x08\x08\x12\x07pytorch")
        assert kind(tmp_path / "model") == "onnx"

    def test_onnx_by_suffix(self, tmp_path: Path) -> None:
        (tmp_path / "a.onnx").write_bytes(b"\xff\xfe\xfd\xfc\x00")
        assert kind(tmp_path / "a.onnx") == "onnx"

    def test_real_files(self, shared_data: Path) -> None:
        found = {p.name: kind(p) for p in shared_data.rglob("*") if p.suffix in (".th", ".pth")}
        assert found
        assert set(found.values()) == {"torch"}
        found = {p.name: kind(p) for p in shared_data.rglob("*.onnx")}
        assert found
        assert set(found.values()) == {"onnx"}


def torchscript(path: Path) -> None:
    """The records of a TorchScript archive; torch.jit itself is deprecated."""
    names = {"net/data.pkl": b"x", "net/constants.pkl": b"x", "net/code/__torch__.py": b"x"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in names.items():
            archive.writestr(name, data)


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO(b""))


REFUSED: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("net.pt", torchscript, "TorchScript", "state_dict"),
    ("a.h5", lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "Keras", "tf2onnx"),
    (
        "a.keras",
        lambda p: zipped(p, configDOTjson=b"{}", modelDOTweightsDOTh5=b""),
        "Keras",
        "onnx",
    ),
    ("a.tflite", lambda p: p.write_bytes(b"\x1c\0\0\0TFL3" + bytes(99)), "TensorFlow Lite", "ONNX"),
    ("saved_model.pb", lambda p: p.write_bytes(b"\x08\x01\x12\x05hello"), "TensorFlow", "tf2onnx"),
    ("frozen.pb", lambda p: p.write_bytes(b"\n\x05hello"), "TensorFlow", "tf2onnx"),
    ("a.npy", lambda p: np.save(p, np.zeros(3)), "NumPy", "ONNX"),
    ("a.npz", lambda p: np.savez(p, x=np.zeros(3)), "NumPy", "ONNX"),
    ("a.onnx.gz", lambda p: p.write_bytes(b"\x1f\x8b\x08\0" + bytes(9)), "gzip", "gunzip"),
    ("a.zip", lambda p: zipped(p, readmeDOTtxt=b"hello"), "zip archive", "unpack"),
    ("a.tar", tar, "tar archive", "unpack"),
    ("notes.txt", lambda p: p.write_text("hello, world\n"), "text file", "ONNX"),
    (
        "a.pth",
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "LFS",
        "pull",
    ),
    ("a.onnx", lambda p: p.write_text("<!DOCTYPE html><html>"), "web page", "download"),
    ("a.xml", lambda p: p.write_text("<?xml version='1.0'?><net name='x'>"), "OpenVINO", "ONNX"),
    ("a.mlmodel", lambda p: p.write_bytes(b"\x08\x04\x12\x05hello"), "Core ML", "ONNX"),
    ("a.gguf", lambda p: p.write_bytes(b"GGUF" + bytes(9)), "GGUF", "ONNX"),
    ("a.caffemodel", lambda p: p.write_bytes(b"\n\x05hello\x12\x00\xff"), "Caffe", "ONNX"),
    ("a.pkl", lambda p: p.write_bytes(b"\x80\x04\x95\x00\xff."), "pickle", "torch.save"),
    ("empty.onnx", lambda p: p.write_bytes(b""), "empty", "download"),
    ("noise.pt", lambda p: p.write_bytes(bytes(range(128, 256))), "no known format", "damaged"),
    ("noise", lambda p: p.write_bytes(bytes(range(128, 256))), "not a model file", "safetensors"),
    ("cut.pt", lambda p: p.write_bytes(b"PK\x03\x04" + bytes(99)), "damaged", "again"),
]


@pytest.mark.parametrize(("name", "make", "what", "way"), REFUSED, ids=[r[0] for r in REFUSED])
def test_refused_with_what_it_is_and_the_way_out(
    tmp_path: Path, name: str, make: Callable[[Path], object], what: str, way: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(FormatError) as caught:
        open_model(tmp_path / name)
    told = str(caught.value)
    assert what in told
    assert way in told
    assert name in told
    assert caught.value.exit_code == 3


class TestPlaces:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FormatError, match="no such file"):
            open_model(tmp_path / "a.onnx")

    def test_folder_names_the_models_inside(self, tmp_path: Path) -> None:
        (tmp_path / "a.onnx").write_bytes(b"x")
        with pytest.raises(FormatError, match="folder") as caught:
            open_model(tmp_path)
        assert "a.onnx" in str(caught.value)

    def test_saved_model_folder(self, tmp_path: Path) -> None:
        (tmp_path / "saved_model.pb").write_bytes(b"x")
        with pytest.raises(FormatError, match="SavedModel"):
            open_model(tmp_path)

    def test_name_with_a_null_byte(self) -> None:
        with pytest.raises(FormatError):
            open_model("a\0.onnx")

    def test_device(self) -> None:
        with pytest.raises(FormatError, match="regular file"):
            open_model("/dev/null")


def test_sniffing_loads_no_framework(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "a.pt")
    code = (
        "import sys, json; from pathlib import Path; from dacconv.formats.sniff import kind;"
        "import dacconv.formats; kind(Path(sys.argv[1]));"
        "print(json.dumps([m for m in ('torch', 'onnx', 'safetensors') if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.pt")], capture_output=True, check=True
    )
    assert json.loads(done.stdout) == []
