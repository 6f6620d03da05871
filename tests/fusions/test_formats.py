"""The same networks in every format: as many convs as deployed, and the same function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from reparam_nets import NETS, build, export_onnx, export_program
from torch import nn

import dacconv
from dacconv.fusions import fuse
from dacconv.graph.types import Plan

SIZE = (1, 3, 16, 16)
SOURCE = Path(__file__).parent.parent / "reparam_nets.py"
PLAIN = ("RepVGG", "ACNet", "PlainDBBNet", "MobileOne")
OVERWRITTEN = ("DBBNet", "EdgeSR")
"""Networks that overwrite a padded border in Python code."""


def opened(net: nn.Module, name: str, kind: str, folder: Path, dtype: torch.dtype):
    x = torch.zeros(SIZE, dtype=dtype)
    path = folder / f"{name}.{kind}"
    if kind == "onnx":
        export_onnx(net, str(path), x)
        return dacconv.load(path)
    if kind == "pt2":
        export_program(net, str(path), x)
        return dacconv.load(path)
    if kind == "pt":
        torch.save(net, path)
        return dacconv.load(path, trust_pickle=True, input_shapes={"": SIZE})
    path = folder / f"{name}.pth"
    torch.save({"state_dict": net.state_dict()}, path)
    return dacconv.load(path, arch=f"{SOURCE}:{name}", input_shapes={"": SIZE})


def outputs(model, x: np.ndarray) -> list[np.ndarray]:
    name = model.inputs()[0].name
    if model.engine == "onnxruntime":  # ONNX Runtime folds BatchNorms by itself
        return model.session(optimise=False, threads=1).run(None, {name: x})
    return list(model.runner()({name: x}).values())


def assert_deployed(model, net, dtype=np.float32, tolerance=1e-5):
    made, fused, refusals = fuse(model)
    x = np.random.default_rng(0).normal(size=SIZE).astype(dtype)
    for result, expected in zip(outputs(made, x), outputs(model, x), strict=True):
        assert result.dtype == expected.dtype
        assert np.abs(result - expected).max() <= tolerance * np.abs(expected).max()
    nodes = made.graph().nodes
    assert sum(node.op in ("conv", "linear") for node in nodes) == net.deployed
    assert not [node for node in nodes if "norm" in node.kind.lower()]
    return made, fused, refusals


@pytest.mark.parametrize("kind", ["onnx", "pt2", "pt", "pth"])
@pytest.mark.parametrize("name", PLAIN)
def test_the_deployed_form(name, kind, tmp_path):
    net = build(name)
    made, _, refusals = assert_deployed(opened(net, name, kind, tmp_path, torch.float32), net)
    assert not refusals
    target = tmp_path / f"fused{made.path.suffix}"
    made.save(target, provenance={}, plan=Plan(()))
    x = torch.randn(SIZE)
    if kind == "pth":
        rebuilt = dacconv.apply(NETS[name](), target).eval()
        assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in rebuilt.modules()) == net.deployed
        expected = net(x)
        assert (rebuilt(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    else:
        again = dacconv.load(target, trust_pickle=True, input_shapes={"": SIZE})
        assert np.array_equal(outputs(again, x.numpy())[0], outputs(made, x.numpy())[0])
        assert not fuse(again)[1]


@pytest.mark.parametrize("kind", ["pt2", "pt"])
@pytest.mark.parametrize("name", PLAIN)
def test_in_float64(name, kind, tmp_path):
    net = build(name).double()
    assert_deployed(opened(net, name, kind, tmp_path, torch.float64), net, np.float64, 1e-10)


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
@pytest.mark.parametrize("name", OVERWRITTEN)
def test_borders_that_are_overwritten(name, kind, tmp_path):
    net = build(name)
    made, fused, _ = assert_deployed(opened(net, name, kind, tmp_path, torch.float32), net)
    written = {"pt2": "copy_", "onnx": "ScatterND"}[kind]
    assert any(written in each.what for each in fused)
    assert len(made.graph().nodes) < 16  # nothing is left of what computed the indices


@pytest.mark.parametrize("kind", ["pt", "pth"])
@pytest.mark.parametrize("name", OVERWRITTEN)
def test_what_a_format_does_not_show_is_refused_and_the_rest_merged(name, kind, tmp_path):
    net = build(name)
    model = opened(net, name, kind, tmp_path, torch.float32)
    made, _, refusals = fuse(model)
    x = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    result, expected = outputs(made, x)[0], outputs(model, x)[0]
    assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max()
    left = sum(node.op in ("conv", "linear") for node in made.graph().nodes)
    assert left == net.deployed or refusals
