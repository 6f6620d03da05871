"""Every network of the zoo, small, through the whole program in the formats that it comes in."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import dacconv
from tests.zoo_nets import SMALL, small, write

EXPORTED = ("shufflenet_v1", "shufflenet_v2", "ghostnet", "unet")
"""Channel shuffle, split, concatenation, cheap operations, squeeze-excite, transposed convs."""
CASES = [
    *((name, kind) for kind in ("pt", "onnx") for name in SMALL),
    *((name, "pt2") for name in EXPORTED),
    *((name, "dynamo") for name in EXPORTED),
]
SLOW_BUDGETS = ("resnet50", "repvgg_a0", "detector", "squeezenet1_1", "densenet121")
"""Networks whose many kinds of layers take a budget seconds; others have the same kinds."""


def opened(name: str, folder: Path, kind: str):
    path = write(name, folder, kind)
    if kind != "pt":
        return dacconv.load(path)
    arguments, size = SMALL[name]
    classes = {} if name in ("unet", "detector") else {"classes": 7}
    return dacconv.load(
        path, arch=f"dacconv.zoo:{name}", arch_args={**arguments, **classes},
        input_shapes={"": (1, 3, size, size)},
    )  # fmt: skip


def outputs(model, name: str) -> list[np.ndarray]:
    feeds = {model.inputs()[0].name: small(name)[1].numpy()}
    return list(model.runner(threads=1)(feeds).values())


def distance(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    assert [a.shape for a in first] == [b.shape for b in second]
    return max(
        float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_fused_and_split_at_full_rank_it_is_the_same_function(name, kind, tmp_path):
    if kind == "dynamo" and find_spec("onnxscript") is None:
        pytest.skip("torch's exporter needs onnxscript, which is not installed")
    model = opened(name, tmp_path, kind)
    before = outputs(model, name)
    layers = dacconv.survey(model)
    assert all(layer.geometries for layer in layers)
    if kind != "dynamo":  # that exporter has merged BatchNorm, and may leave nothing to merge
        assert distance(before, outputs(dacconv.fuse(model).model, name)) < 1e-5
    plan = dacconv.plan(model, energy=1.0, method="dac", allow_costlier=True)
    done = dacconv.convert(model, plan)
    assert done.plan.choices
    assert distance(before, outputs(done.model, name)) < 1e-5


@pytest.mark.parametrize("name", [name for name in SMALL if name not in SLOW_BUDGETS])
def test_a_budget_of_70_percent_leaves_depthwise_convs_alone(name, tmp_path):
    model = opened(name, tmp_path, "onnx")
    before = outputs(model, name)
    plan = dacconv.plan(model, macs=0.7)
    done = dacconv.convert(model, plan)
    left = 1 - (done.report.saving() or 0)
    assert left <= 0.7
    depthwise = {
        layer.name
        for layer in dacconv.survey(model)
        if layer.geometry.groups == layer.geometry.in_channels > 1
    }
    assert not depthwise & {choice.layer for choice in plan.choices}
    reasons = {row.name: row.reason for row in done.report.rows if row.rank is None}
    assert all("depthwise" in (reasons[layer] or "") for layer in depthwise)
    assert [a.shape for a in before] == [b.shape for b in outputs(done.model, name)]


def test_more_paddings_computed_from_sizes_than_rounds_of_inference_once_were(tmp_path):
    """EfficientNet pads before 17 convs by what it computes from Shape nodes."""
    model = opened("efficientnet_lite0_pytorch", tmp_path, "onnx")
    pads = [entry for entry in model.document.entries if entry.op == "Pad"]
    assert len(pads) == 17
    assert (
        dacconv.inspect(model).before.macs
        == dacconv.inspect(opened("efficientnet_lite0_pytorch", tmp_path, "pt")).before.macs
    )
