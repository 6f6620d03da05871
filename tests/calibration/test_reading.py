"""The user's own inputs may be damaged or made to do harm: a clear refusal, and soon."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dacconv.support import archives


def png(width: int, height: int) -> bytes:
    """A PNG that says it has that size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def calibrate(run: Any, path: str) -> Any:
    return run("convert", "net.onnx", "--rank", 2, "--no-verify", "--calibrate", path)


@pytest.mark.parametrize("size", [(30_000, 30_000), (10_000, 10_000), (2**31 - 1, 2**31 - 1)])
def test_image_bombs(run: Any, work: Path, size: tuple[int, int]) -> None:
    (work / "images").mkdir()
    for index in range(4):
        (work / "images" / f"{index}.png").write_bytes(png(*size))
    done = calibrate(run, "images")
    assert (done.code, "images/0.png" in done.err, "bug" in done.err) == (2, True, False)


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_images_that_are_no_files(run: Any, work: Path, kind: str) -> None:
    place = work / "images" / "a.png"
    place.parent.mkdir()
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to("/dev/zero")
    done = calibrate(run, "images")
    assert (done.code, "not a regular file" in done.err) == (2, True)


def test_arrays_that_are_no_files(run: Any, work: Path) -> None:
    os.mkfifo(work / "a.npy")
    for path in ("a.npy", "/dev/zero"):
        done = calibrate(run, path)
        assert (done.code, "not a regular file" in done.err) == (2, True)


def test_array_bombs(run: Any, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_UNPACKED", 1000)
    np.savez_compressed(work / "a.npz", x=np.zeros((1000, 3, 12, 12), np.float32))
    done = calibrate(run, "a.npz")
    assert (done.code, "would unpack to" in done.err) == (2, True)


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.float32(3), "y": np.int64(1)},
        {"x": np.zeros((0, 3, 12, 12), np.float32), "y": np.zeros(0, int)},
        {"x": np.zeros((4, 3, 12, 12), np.float32), "y": np.zeros((4, 2), int)},
        {"x": np.zeros((4, 3, 12, 12), np.float32), "y": np.zeros(4)},
    ],
)
def test_labelled_data_that_is_none(run: Any, work: Path, arrays: dict[str, Any]) -> None:
    np.savez(work / "d.npz", **arrays)
    sweep = ("sweep", "net.onnx", "--mode", "uniform", "--ranks", 2, "--jobs", 1, "-o", "r.csv")
    done = run(*sweep, "--data", "d.npz")
    assert (done.code, "bug" in done.err) == (2, False)
