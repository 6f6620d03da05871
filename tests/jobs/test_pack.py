"""dacconv pack and unpack, as a user types them."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

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


def values_of(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".onnx":
        return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    return {k: v.numpy() for k, v in torch.load(path, weights_only=True).items()}


ARCH = ("--arch", "tests.cli_nets:SmallNet", "--input-shape", "1,3,12,12")


@pytest.mark.parametrize("name", ["net.onnx", "net.pth", "net.safetensors"])
def test_rounded_weights_come_out_of_an_ordinary_file(run, work, name: str) -> None:
    arch = () if name == "net.onnx" else ARCH
    done = run("pack", name, "--bits", 6, "-o", "small.dcz", *arch)
    assert (done.code, done.new) == (0, ["small.dcz"]), done.err
    assert "verdict: " in done.out
    assert "inputs for rounding" in done.out
    assert run("unpack", "small.dcz", "-o", f"back-{name}").code == 0
    before, after = values_of(work / name), values_of(work / f"back-{name}")
    assert list(before) == list(after)
    for key, value in before.items():
        assert (value.dtype, value.shape) == (after[key].dtype, after[key].shape)
        if value.ndim < 2:
            assert value.tobytes() == after[key].tobytes(), key
            continue
        assert not np.array_equal(value, after[key])
    assert (work / f"back-{name}").stat().st_size == (work / name).stat().st_size
    assert run("check", name, f"back-{name}", "--max-error", 0.2, *arch).code == 0


def test_half_floats_are_rounded_in_their_own_dtype(run, work) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        state = {k: v.to(dtype) if v.is_floating_point() else v
                 for k, v in cli_nets.trained().state_dict().items()}  # fmt: skip
        torch.save(state, work / "half.pt")
        assert run("pack", "half.pt", "--force", "--bits", 5).code == 0
        assert run("unpack", "half.dcz", "-o", "back.pt", "--force").code == 0
        back = torch.load(work / "back.pt", weights_only=True)
        assert back["conv1.weight"].dtype == dtype
        assert len(back["conv1.weight"].unique()) < 200


def test_a_program_is_rounded(run, work) -> None:
    program = torch.export.export(cli_nets.trained(), (torch.ones(1, 3, 12, 12),))
    torch.export.save(program, work / "net.pt2")
    assert run("pack", "net.pt2", "--bits", 6, "-o", "small.dcz").code == 0
    assert run("unpack", "small.dcz", "-o", "back.pt2").code == 0
    x = torch.from_numpy(cli_nets.images(8))
    before, after = cli_nets.trained()(x), torch.export.load(work / "back.pt2").module()(x[:1])
    assert torch.linalg.norm(before[:1] - after) < 0.2 * torch.linalg.norm(before[:1])


def test_a_size_is_kept(run, work) -> None:
    size = (work / "net.onnx").stat().st_size
    for share in (0.35, 0.25):
        assert run("pack", "net.onnx", "--size", share, "-o", f"{share}.dcz").code == 0
        assert 0.8 * share * size < (work / f"{share}.dcz").stat().st_size <= share * size
    done = run("pack", "net.onnx", "--size", 0.01, "-o", "tiny.dcz")
    assert (done.code, done.new) == (3, [])
    assert "the smallest packed file" in done.err


def test_an_error_is_kept_and_more_of_it_gives_a_smaller_file(run, work) -> None:
    sizes = []
    for error in (0.02, 0.15):
        done = run("pack", "net.onnx", "--max-error", error, "-o", f"{error}.dcz")
        assert done.code == 0, done.err
        sizes.append((work / f"{error}.dcz").stat().st_size)
    assert sizes[1] < 0.8 * sizes[0]


def test_a_missed_gate_writes_nothing_unless_keep(run) -> None:
    args = ("pack", "net.onnx", "--bits", 4, "--max-error", 1e-6, "-o", "small.dcz")
    done = run(*args)
    assert (done.code, done.new) == (1, [])
    assert "at most 1e-06 required" in done.err
    assert "--keep" in done.err
    assert run(*args, "--keep").new == ["small.dcz"]


def test_without_inputs_weights_alone_are_rounded(run) -> None:
    done = run("pack", "net.pth", "--bits", 6, "-o", "small.dcz")
    assert done.code == 0
    assert "not verified" in done.out
    done = run("pack", "net.pth", "--max-error", 0.1, "-o", "other.dcz")
    assert (done.code, done.new) == (2, [])
    assert "model to run" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lossless", "--bits", 6), "excludes --bits"),
        (("--bits", 6, "--size", 0.1), "excludes --size"),
        (("--lossless", "--max-error", 0.1), "excludes --max-error"),
        (("--bits", 1), "between 2 and 12"),
        (("--size", 3), "--size"),
        (("--size", "small"), "--size"),
    ],
)
def test_options_that_make_no_sense_are_refused(run, options, message: str) -> None:
    done = run("pack", "net.onnx", *options)
    assert (done.code, done.new) == (2, [])
    assert message in done.err


def test_few_values_in_an_ordinary_file(run, work) -> None:
    done = run("round", "net.onnx", "--float-levels", 16)
    assert (done.code, done.new) == (0, ["net.rounded.onnx"])
    before, after = (values_of(work / n) for n in ("net.onnx", "net.rounded.onnx"))
    assert all(len(np.unique(v)) <= 17 for v in after.values() if v.ndim > 1)
    assert all(np.array_equal(before[k], after[k]) for k in before if before[k].ndim < 2)
    sizes = [len(gzip.compress((work / n).read_bytes())) for n in ("net.onnx", "net.rounded.onnx")]
    assert sizes[1] < sizes[0] / 3
    assert run("round", "net.onnx", "--float-levels", 1, "--force").code == 2


def test_checksums_of_an_archive_are_right_afterwards(run, work) -> None:
    run("round", "net.pth", "--float-levels", 64, "-o", "few.pth")
    with zipfile.ZipFile(work / "few.pth") as archive:
        assert archive.testzip() is None


def test_a_model_with_no_weight_to_round_is_refused(run, work) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    value = [onnx.helper.make_tensor_value_info(n, 1, [1, 3, 8, 8]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    onnx.save(onnx.helper.make_model(graph), work / "relu.onnx")
    done = run("pack", "relu.onnx")
    assert (done.code, done.new) == (3, [])
    assert "no layer was found" in done.err
    assert run("pack", "relu.onnx", "--lossless").code == 0
