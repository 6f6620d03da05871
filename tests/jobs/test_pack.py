"""dacconv pack and unpack, as a user types them."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import onnx
import pytest
import torch

from dacconv.packing.container import MAGIC
from tests import cli_nets


def sums(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["net.onnx", "net.pth", "net.safetensors"])
def test_lossless_is_bit_for_bit(run, work, name: str) -> None:
    done = run("pack", name, "--lossless", "-o", "small.dcz")
    assert (done.code, done.new, done.kept) == (0, ["small.dcz"], True)
    assert "x smaller" in done.out
    assert (work / "small.dcz").stat().st_size < (work / name).stat().st_size
    done = run("unpack", "small.dcz", "-o", f"back.{name}")
    assert (done.code, done.new) == (0, [f"back.{name}"])
    assert (work / f"back.{name}").read_bytes() == (work / name).read_bytes()


@pytest.mark.parametrize("kind", ["pt2", "legacy", "module"])
def test_lossless_of_other_files_of_torch(run, work, kind: str) -> None:
    net = cli_nets.trained()
    path = work / ("net.pt2" if kind == "pt2" else "old.pt")
    if kind == "pt2":
        torch.export.save(torch.export.export(net, (torch.ones(1, 3, 12, 12),)), path)
    else:
        value = net if kind == "module" else net.state_dict()
        torch.save(value, path, _use_new_zipfile_serialization=kind == "module")
    assert run("pack", path, "--lossless").code == 0
    assert path.with_suffix(".dcz").stat().st_size < path.stat().st_size / 1.05
    assert run("unpack", path.with_suffix(".dcz"), "-o", "back").code == 0
    assert (work / "back").read_bytes() == path.read_bytes()


def test_external_data_comes_back_beside_the_model(run, work) -> None:
    source = work / "source"
    (source / "weights").mkdir(parents=True)
    onnx.save(cli_nets.onnx_model(), source / "net.onnx", save_as_external_data=True,
              location="weights/net.data", size_threshold=0)  # fmt: skip
    assert run("pack", "source/net.onnx", "--lossless", "-o", "net.dcz").code == 0
    (work / "back").mkdir()
    assert run("unpack", "net.dcz", "-o", "back/net.onnx").code == 0
    assert sums(work / "back") == sums(source)
    before = sums(work / "back")
    done = run("unpack", "net.dcz", "-o", "back/other.onnx")
    assert done.code == 2
    assert "exists already" in done.err
    assert sums(work / "back") == before


def test_unpack_writes_the_models_own_name_and_overwrites_only_with_force(run, work) -> None:
    assert run("pack", "net.pth", "--lossless").new == ["net.dcz"]
    done = run("unpack", "net.dcz")
    assert (done.code, done.new, done.kept) == (2, [], True)
    assert "exists already" in done.err
    assert run("unpack", "net.dcz", "--force").code == 0
    assert run("pack", "net.pth", "--lossless").code == 2


def test_a_folder_that_links_elsewhere_is_refused(run, work, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("elsewhere")
    source = work / "source"
    (source / "weights").mkdir(parents=True)
    onnx.save(cli_nets.onnx_model(), source / "net.onnx", save_as_external_data=True,
              location="weights/net.data", size_threshold=0)  # fmt: skip
    run("pack", "source/net.onnx", "--lossless", "-o", "net.dcz")
    (work / "back").mkdir()
    (work / "back" / "weights").symlink_to(other)
    done = run("unpack", "net.dcz", "-o", "back/net.onnx")
    assert done.code == 2
    assert "leads out" in done.err
    assert not list(other.iterdir())


def test_a_damaged_or_other_file_is_refused_in_one_message(run, work) -> None:
    run("pack", "net.pth", "--lossless")
    data = (work / "net.dcz").read_bytes()
    for damaged in (data[:-1], data[:40], data[:100] + b"x" + data[101:], MAGIC):
        (work / "bad.dcz").write_bytes(damaged)
        done = run("unpack", "bad.dcz", "-o", "out.pth")
        assert (done.code, done.new, done.out) == (3, [], "")
        assert "not a packed model that can be unpacked" in done.err
        assert len(done.err.splitlines()) == 2
    done = run("unpack", "net.pth", "-o", "out.pth")
    assert (done.code, done.new) == (3, [])
    assert "not a packed model" in done.err
    assert run("unpack", "missing.dcz").code == 3


def test_other_commands_point_to_unpack(run, work) -> None:
    run("pack", "net.pth", "--lossless")
    shutil.copy(work / "net.dcz", work / "net2.onnx")
    for name in ("net.dcz", "net2.onnx"):
        done = run("inspect", name)
        assert done.code == 3
        assert "packed model" in done.err
        assert "dacconv unpack" in done.err
