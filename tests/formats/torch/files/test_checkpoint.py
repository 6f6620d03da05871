from __future__ import annotations

import argparse
import io
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from dacconv.errors import DacconvError, FormatError, UsageError
from dacconv.formats import LoadOptions, open_model
from dacconv.formats.torch.files.checkpoint import read_checkpoint, write_pickle, write_safetensors
from dacconv.formats.torch.files.pickles import is_module, wanted_globals


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def state() -> OrderedDict[str, torch.Tensor]:
    made = OrderedDict()
    made["a.weight"] = torch.arange(4 * 3 * 9.0).reshape(4, 3, 3, 3)
    made["a.bias"] = torch.ones(4)
    made["b.weight"] = torch.ones(5, 4, 3, 3)
    return made


FORMATS = ("zip", "legacy", "safetensors")


def write(path: Path, how: str) -> Path:
    if how == "safetensors":
        save_file(dict(state()), path, {"format": "pt"})
    else:
        torch.save(state(), path, _use_new_zipfile_serialization=how == "zip")
    return path


class TestBombs:
    @pytest.mark.parametrize("how", ["zip", "legacy"])
    def test_does_not_run_and_is_named(self, tmp_path: Path, how: str) -> None:
        mark, path = tmp_path / "ran", tmp_path / "a.pt"
        content = {"state_dict": state(), "extra": Bomb(mark)}
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
        with pytest.raises(FormatError, match=r"system") as caught:
            open_model(path)
        assert "--trust-pickle" in str(caught.value)
        assert not mark.exists()

    def test_hidden_behind_stack_global(self, tmp_path: Path) -> None:
        mark, path = tmp_path / "ran", tmp_path / "a.pt"
        with path.open("wb") as stream:
            torch.save(Bomb(mark), stream, pickle_protocol=4)
        with pytest.raises(FormatError, match=r"posix\.system|nt\.system"):
            open_model(path)
        assert not mark.exists()

    def test_plain_pickle_is_not_opened(self, tmp_path: Path) -> None:
        mark = tmp_path / "ran"
        (tmp_path / "a.pth").write_bytes(pickle.dumps(Bomb(mark)))
        with pytest.raises(FormatError):
            open_model(tmp_path / "a.pth", LoadOptions(trust_pickle=True))
        assert not mark.exists()


class TestTrust:
    @pytest.mark.parametrize("how", ["zip", "legacy"])
    def test_training_leftovers(self, tmp_path: Path, how: str) -> None:
        path = tmp_path / "a.pth"
        content = {"args": argparse.Namespace(lr=0.1), "acc": np.float64(0.9), "model": state()}
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
        with pytest.raises(FormatError, match=r"argparse\.Namespace") as caught:
            open_model(path)
        assert "more than tensors" in str(caught.value)
        model = open_model(path, LoadOptions(trust_pickle=True))
        assert [n.name for n in model.graph().nodes] == ["a", "b"]

    def test_class_that_is_not_there(self, tmp_path: Path) -> None:
        module = types.ModuleType("gone_module")
        exec("class Thing: pass", module.__dict__)
        sys.modules["gone_module"] = module
        path = tmp_path / "a.pth"
        torch.save({"thing": module.Thing(), "model": state()}, path)
        del sys.modules["gone_module"]
        with pytest.raises(UsageError, match="gone_module") as caught:
            open_model(path, LoadOptions(trust_pickle=True))
        assert "PYTHONPATH" in str(caught.value)

    def test_module_is_called_one(self, tmp_path: Path) -> None:
        path = tmp_path / "a.pth"
        torch.save(nn.DataParallel(nn.Conv2d(3, 4, 3)), path)
        names = wanted_globals(path)
        assert "torch.nn.modules.conv.Conv2d" in names
        assert is_module(names)
        with pytest.raises(FormatError, match=r"pickled nn\.Module"):
            open_model(path)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8])
    def test_plain_tensors_want_nothing(self, tmp_path: Path, dtype: torch.dtype) -> None:
        path = tmp_path / "a.pth"
        torch.save({"x": torch.zeros(2, dtype=dtype), "y": nn.Parameter(torch.ones(1))}, path)
        assert wanted_globals(path) == ()


class TestDamage:
    """Any error is a DacconvError; a flipped bit is either found or harmless."""

    @pytest.mark.parametrize("how", FORMATS)
    def test_truncated_anywhere(self, tmp_path: Path, how: str) -> None:
        data = write(tmp_path / "a.pt", how).read_bytes()
        path = tmp_path / "cut.pt"
        for length in range(0, len(data), max(1, len(data) // 60)):
            path.write_bytes(data[:length])
            with pytest.raises(FormatError):
                open_model(path)

    @pytest.mark.parametrize("how", FORMATS)
    def test_bits_flipped(self, tmp_path: Path, how: str) -> None:
        data = write(tmp_path / "a.pt", how).read_bytes()
        path = tmp_path / "flipped.pt"
        rng = np.random.default_rng(0)
        for _ in range(150):
            flipped = bytearray(data)
            flipped[rng.integers(len(data))] ^= 1 << rng.integers(8)
            path.write_bytes(flipped)
            try:
                open_model(path).graph()
            except DacconvError as error:
                assert str(path) in str(error)  # noqa: PT017

    def test_flipped_weights_in_a_zip_are_found(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.pt", "zip")
        with zipfile.ZipFile(path) as archive:
            (record,) = [i for i in archive.infolist() if i.filename.endswith("data/0")]
        data = bytearray(path.read_bytes())
        at = data.index(torch.arange(4 * 3 * 9.0).numpy().tobytes())
        data[at + 100] ^= 4
        path.write_bytes(data)
        with pytest.raises(FormatError, match=record.filename):
            open_model(path)


class TestBytes:
    def test_do_not_depend_on_the_name(self, tmp_path: Path) -> None:
        for name in ("one.pt", "another.pt"):
            write_pickle({"state_dict": state()}, tmp_path / name)
        assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "another.pt").read_bytes()

    def test_views_of_one_storage_stay_one(self, tmp_path: Path) -> None:
        base = torch.arange(1000.0)
        torch.save({"a": base[:500], "b": base[500:], "c": base}, tmp_path / "a.pt")
        content = read_checkpoint(tmp_path / "a.pt", trust_pickle=False).content
        write_pickle(content, tmp_path / "b.pt")
        assert (tmp_path / "b.pt").stat().st_size < 6000

    @pytest.mark.parametrize(
        "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64]
    )
    def test_safetensors_round_trip(self, tmp_path: Path, dtype: torch.dtype) -> None:
        tensors = {
            "b": torch.arange(7).to(dtype),
            "a": torch.ones(2, 3).to(dtype),
            "e": torch.ones(0),
        }
        save_file(tensors, tmp_path / "a.safetensors", {"format": "pt", "n": "1"})
        read = read_checkpoint(tmp_path / "a.safetensors", trust_pickle=False)
        assert read.dtypes is not None
        write_safetensors(read.content, read.dtypes, read.metadata, tmp_path / "b.safetensors")
        again = load_file(tmp_path / "b.safetensors")
        assert {k: v.tolist() for k, v in again.items()} == {
            k: v.tolist() for k, v in tensors.items()
        }
        assert {v.dtype for k, v in again.items() if k != "e"} == {dtype}
        with safe_open(tmp_path / "b.safetensors", "pt") as opened:
            assert opened.metadata() == {"format": "pt", "n": "1"}

    def test_safetensors_with_mixed_dtypes(self, tmp_path: Path) -> None:
        tensors = {"x": torch.ones(3, dtype=torch.uint8), "y": torch.ones(2, dtype=torch.float64)}
        dtypes = {"x": "U8", "y": "F64"}
        write_safetensors(tensors, dtypes, {}, tmp_path / "a.safetensors")
        assert load_file(tmp_path / "a.safetensors")["y"].tolist() == [1, 1]


def test_globals_of_a_damaged_pickle(tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save(Bomb(tmp_path / "x"), stream, _use_new_zipfile_serialization=False)
    (tmp_path / "a.pt").write_bytes(stream.getvalue()[:-30])
    assert any("system" in name for name in wanted_globals(tmp_path / "a.pt"))
