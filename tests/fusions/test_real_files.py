"""Real checkpoints: no BatchNorm left where it can go, and the same function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import dacconv
from dacconv.fusions import fuse

ROOT = Path(__file__).resolve().parents[2]


def difference(model, made, x: np.ndarray) -> float:
    """Of the outputs, relative to the largest value; ONNX Runtime without optimisation."""
    name = model.inputs()[0].name
    if model.engine == "onnxruntime":
        first, second = (
            each.session(optimise=False, threads=1).run(None, {name: x}) for each in (model, made)
        )
    else:
        first, second = (list(each.runner()({name: x}).values()) for each in (model, made))
    pairs = zip(first, second, strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def affines(model) -> list[str]:
    """BatchNorms, and constants per channel in loose arithmetic."""
    nodes = [node for node in model.graph().nodes if node.op == "affine"]
    return [n.name for n in nodes if n.skip or model.affine(n.name).scale.size > 1]


@pytest.mark.parametrize("name", ["ultraface_rfb_320", "ultraface_slim_320"])
def test_face_detectors(name, shared_data):
    model = dacconv.load(shared_data / "onnx" / f"{name}.onnx")
    made, fused, refusals = fuse(model)
    assert len(fused) in (25, 35)
    assert not affines(made)
    x = np.random.default_rng(0).uniform(-1, 1, (1, 3, 240, 320)).astype(np.float32)
    assert difference(model, made, x) <= 1e-5
    assert all("cost more" in refusal.reason for refusal in refusals)


def test_loose_arithmetic_in_nhwc(shared_data):
    """ResNet-50-thin from Keras: Add, Sub, Mul, Add behind a Transpose and a Cast, 53 times."""
    model = dacconv.load(shared_data / "onnx" / "open_nsfw.onnx")
    made, fused, refusals = fuse(model)
    assert affines(model)
    assert not affines(made)
    assert not refusals
    assert len(fused) >= 53
    kinds = [node.kind for node in made.graph().nodes]
    assert kinds.count("Conv") == 53
    x = np.random.default_rng(0).uniform(0, 255, (1, 224, 224, 3)).astype(np.float32) - 110
    assert difference(model, made, x) <= 1e-5


def test_auto_pad_and_biases(shared_data):
    model = dacconv.load(shared_data / "onnx" / "cntk_mnist.onnx")
    made, _, refusals = fuse(model)
    assert not affines(made)
    assert not refusals
    x = np.random.default_rng(0).uniform(0, 255, (1, 1, 28, 28)).astype(np.float32)
    assert difference(model, made, x) <= 1e-5


def test_resnet20(shared_data):
    model = dacconv.load(
        shared_data / "cifar10" / "resnet20.th",
        arch=f"{ROOT / 'scripts' / 'archs.py'}:ResNet20",
        input_shapes={"": (2, 3, 32, 32)},
    )
    made, fused, refusals = fuse(model)
    assert len(fused) == 19
    assert not affines(made)
    assert not refusals
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    assert difference(model, made, x) <= 1e-5


@pytest.mark.parametrize("name", ["fashion.onnx", "fashion.pth"])
def test_the_network_of_the_repository(name, assets):
    options = {"input_shapes": {"": (1, 1, 28, 28)}}
    if name.endswith("pth"):
        options["arch"] = f"{assets / 'fashion_net.py'}:FashionNet"
    model = dacconv.load(assets / name, **options)
    made, _, refusals = fuse(model)
    assert affines(model)
    assert not affines(made)
    assert not refusals
    x = torch.randn(1, 1, 28, 28).numpy()
    assert difference(model, made, x) <= 1e-5
