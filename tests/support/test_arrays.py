"""Sizes of arrays are read first; what does not fit its file, or is no array, is an error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dacconv.support import archives
from dacconv.support.arrays import ArrayFile

ARRAYS = {
    "x": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "Y": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "none": np.zeros((0, 3), np.int8),
    "one": np.float64(3),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", **ARRAYS)
    file = ArrayFile(tmp_path / "a.npz")
    assert file.zipped
    for name, array in ARRAYS.items():
        assert (file.headers[name].shape, file.headers[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(file.read(name), array)


@pytest.mark.parametrize("name", ARRAYS)
def test_single_arrays(tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "a.npy", ARRAYS[name])
    file = ArrayFile(tmp_path / "a.npy")
    assert not file.zipped
    np.testing.assert_array_equal(file.read(""), ARRAYS[name])


def header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        header("(1000000000000,)"),
        header("(3,)") + bytes(11),
        header("(3,)") + bytes(13),
        header("(-3,)") + bytes(12),
        header("(-1, -3)") + bytes(12),
        header("(4611686018427387904, 4)"),
        header("(1,)", "'|O'") + b"cos\nsystem\n.",
        header("__import__('os').system('true')"),
        header("(((((((((1,),),),),),),),)"),
        b"\x93NUMPY\3\0\1\0\0\0{",
        b"\x93NUMPY\1\0\xff\xff{",
        b"\x93NUMPY",
        b"",
    ],
)
def test_damage(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(ValueError, match=r"."):
        ArrayFile(tmp_path / "a.npy")


def test_objects_in_archives(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], object))
    with pytest.raises(ValueError, match="objects"):
        ArrayFile(tmp_path / "a.npz")


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_UNPACKED", 1000)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(100_000, np.float32))
    with pytest.raises(ValueError, match="would unpack to"):
        ArrayFile(tmp_path / "a.npz")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npy")
    for path in (tmp_path, tmp_path / "a.npy", Path("/dev/zero")):
        with pytest.raises(ValueError, match="not a regular file"):
            ArrayFile(path)
    with pytest.raises(FileNotFoundError):
        ArrayFile(tmp_path / "b.npy")
