"""A converted file is what its original and its plan give, or dacconv says what is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tests import cli_nets
from tests.cli.test_app import ARCH


def change(path: Path, scale: float) -> None:
    """Scale the first weight of a converted file."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 4)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * scale, tensor.name))
    onnx.save(model, path)


def restamp(path: Path, **facts: object) -> None:
    """Change what a converted file says of itself."""
    model = onnx.load(path)
    (entry,) = (p for p in model.metadata_props if p.key == "dacconv")
    entry.value = json.dumps({**json.loads(entry.value), **facts})
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("net.onnx", ("--rank", 2, "--last-k", 2, "--kernel-scale", "unit")),
        ("net.onnx", ("--ranks", "conv2=3,conv3=99", "--allow-costlier")),
        ("net.onnx", ("--macs", 0.6, "--calibrate", "synthetic", "--calibration-images", 4)),
        ("net.pth", ("--rank", 2, *ARCH)),
        ("net.pth", ("--energy", 0.5)),
        ("net.safetensors", ("--rank", 2)),
    ],
)
def test_every_byte_is_made_again(run, work, model, options) -> None:
    assert run("convert", model, *options, "--no-verify", "--threads", 1).code == 0
    made = model.replace("net", "net.dac")
    opening = ARCH if "--arch" in options else ()
    done = run("check", model, made, "--reproduce", *opening)
    assert done.out == f"{made}: reproduced, byte for byte\n"
    assert (done.code, done.new, done.kept) == (0, [], True)


def test_a_fused_file_too_and_under_another_name(run, work) -> None:
    assert run("fuse", "net.onnx").code == 0
    (work / "net.onnx").rename(work / "renamed.onnx")
    done = run("check", "renamed.onnx", "net.fused.onnx", "--reproduce")
    assert (done.code, "byte for byte" in done.out) == (0, True)


def test_what_is_not_the_same(run, work) -> None:
    assert run("convert", "net.onnx", "--rank", 2, "--form", "multiplier").code == 0
    target, plain = work / "net.dac.onnx", (work / "net.dac.onnx").read_bytes()
    change(target, 1 + 1e-6)
    done = run("check", "net.onnx", target, "--reproduce")
    assert done.code == 0
    assert "reproduced but for rounding" in done.out
    change(target, 1.01)
    done = run("check", "net.onnx", target, "--reproduce")
    assert done.code == 1
    assert "not reproduced: the weights of 1 of 8 layers differ: point by 0.01\n" in done.out

    target.write_bytes(plain)
    restamp(target, version="0.0.9")
    assert run("check", "net.onnx", target, "--reproduce").code == 0
    change(target, 1 + 1e-6)
    assert "made by dacconv 0.0.9, this is" in run("check", "net.onnx", target, "--reproduce").out

    change(work / "net.onnx", 2)
    done = run("check", "net.onnx", target, "--reproduce")
    assert done.code == 1
    assert "the original is another file" in done.out


def test_other_layers_are_named(run, work) -> None:
    assert run("convert", "net.onnx", "--rank", 2).code == 0
    target = work / "net.dac.onnx"
    kept = {p.key: p.value for p in onnx.load(target).metadata_props}
    assert run("convert", "net.onnx", "--rank", 2, "--last-k", 1, "--force").code == 0
    model = onnx.load(target)
    for entry in model.metadata_props:
        entry.value = kept[entry.key]
    onnx.save(model, target)
    done = run("check", "net.onnx", target, "--reproduce")
    assert (done.code, "it has other layers" in done.out) == (1, True)


def test_files_that_do_not_tell(run, work) -> None:
    done = run("check", "net.onnx", "net.onnx", "--reproduce")
    assert (done.code, "has no record of its conversion" in done.err) == (3, True)
    assert run("convert", "net.onnx", "--rank", 2).code == 0
    restamp(work / "net.dac.onnx", options={"rnak": 2})
    done = run("check", "net.onnx", "net.dac.onnx", "--reproduce")
    assert (done.code, "the nearest is 'rank'" in done.err) == (2, True)
    restamp(work / "net.dac.onnx", options=None, sha256=None)
    done = run("check", "net.onnx", "net.dac.onnx", "--reproduce")
    assert (done.code, "damaged" in done.err) == (3, True)
    done = run("check", "net.onnx", "net.dac.onnx", "--reproduce", "--max-error", 1)
    assert (done.code, "excludes --max-error" in done.err) == (2, True)


# -- what a file says of itself is never obeyed ---------------------------------------------


def say(work: Path, **options: object) -> None:
    """Put options into the record beside ``net.dac.pth``."""
    record = json.loads((work / "net.dac.plan.json").read_text())
    record["provenance"]["options"].update(options)
    (work / "net.dac.plan.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({"arch": "os:system", "arch_arg": ["command=touch canary"]}, "--arch and --arch-arg"),
        ({"arch": "canary.py:Net"}, "--arch"),
        ({"arch_arg": ["command=touch canary"]}, "--arch-arg"),
        ({"trust_pickle": True}, "--trust-pickle"),
        ({"calibrate": "images"}, "--calibrate"),
    ],
)
def test_recorded_code_trust_and_paths_must_be_given_again(run, work, options, needed) -> None:
    assert run("convert", "net.pth", "--rank", 2, "--no-verify").code == 0
    (work / "canary.py").write_text("open('canary', 'w').close()")
    say(work, **options)
    done = run("check", "net.pth", "net.dac.pth", "--reproduce")
    assert (done.code, (work / "canary").exists()) == (2, False)
    assert "is not read from a file" in done.err
    assert f"pass {needed} yourself" in done.err


@pytest.mark.parametrize("name", ["plan", "from_sweep", "timings"])
def test_recorded_paths_are_not_opened(run, work, name) -> None:
    assert run("convert", "net.pth", "--rank", 2, "--no-verify").code == 0
    say(work, **{name: "nowhere.json", "tune": True, "pick": "knee"})
    done = run("check", "net.pth", "net.dac.pth", "--reproduce")
    assert "nowhere.json" not in done.err
    assert not (work / "nowhere.json").exists()


def test_another_original_is_said_before_anything_else(run, work) -> None:
    assert run("convert", "net.pth", "--rank", 2, "--no-verify").code == 0
    say(work, arch="os:system", arch_arg=["command=touch canary"])
    other = {name: tensor * 2 for name, tensor in torch.load(work / "net.pth").items()}
    torch.save(other, work / "net.pth")
    done = run("check", "net.pth", "net.dac.pth", "--reproduce")
    assert (done.code, (work / "canary").exists()) == (1, False)
    assert "the original is another file" in done.out


def test_the_users_own_inputs_are_given_again(run, work) -> None:
    np.save(work / "inputs.npy", cli_nets.images())
    options = ("--macs", 0.6, "--calibrate", "inputs.npy", "--no-verify", "--threads", 1)
    assert run("convert", "net.onnx", *options).code == 0
    done = run("check", "net.onnx", "net.dac.onnx", "--reproduce")
    assert (done.code, "pass --calibrate yourself" in done.err) == (2, True)
    again = run("check", "net.onnx", "net.dac.onnx", "--reproduce", "--calibrate", "inputs.npy")
    assert (again.code, "reproduced, byte for byte" in again.out) == (0, True)
    done = run("check", "net.onnx", "net.dac.onnx", "--calibrate", "inputs.npy")
    assert (done.code, "goes with --reproduce" in done.err) == (2, True)
