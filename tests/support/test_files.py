import errno
import os
from pathlib import Path

import pytest

from dacconv.support.files import Digest, WriteError, replacing, write_text


def test_a_file_is_complete_or_absent(tmp_path):
    target = tmp_path / "a.bin"
    with replacing(target) as (temporary,):
        temporary.write_bytes(b"1")
        assert not target.exists()
        assert temporary.suffix == ".bin"
    assert target.read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["a.bin"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _fail(temporary: Path) -> None:
    temporary.write_bytes(b"new")
    raise KeyError


def test_an_error_leaves_everything_as_it_was(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(KeyError), replacing(target) as (temporary,):
        _fail(temporary)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_full_disk(tmp_path):
    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(WriteError, match="No space left"),
        replacing(tmp_path / "a") as (temporary,),
    ):
        write(temporary)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(WriteError, match="No such file"):
        write_text(tmp_path / "no" / "a.txt", "x")


def test_several_files_take_their_names_together(tmp_path):
    with replacing(tmp_path / "data", tmp_path / "model") as (data, model):
        data.write_text("d")
        model.write_text("m")
    assert sorted(os.listdir(tmp_path)) == ["data", "model"]
    assert Digest(tmp_path / "data").of(tmp_path / "data") == (
        "18ac3e7343f016890c510e93f935261169d9e3f565436429830faf0934f4f8e4"
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
