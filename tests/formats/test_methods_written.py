"""Every method in every format: at full rank the model is the same function, also once saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch_nets
from torch_nets import relative, small_net

import dacconv
from dacconv.conversion.pipeline import convert, survey
from dacconv.decompositions import METHODS
from dacconv.formats import LoadOptions, Model, open_model
from dacconv.graph.types import Choice, Plan
from dacconv.planning.spectra import SplitOptions
from tests import onnx_nets
from tests.onnx_nets import conv_model, difference, feeds, node, opened, run, weights

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
NEWEST_IR, NEWEST_OPSET = 11, 26
SHAPE = (2, 3, 24, 24)
ARCH = LoadOptions(arch=f"{torch_nets.__file__}:small_net", input_shapes={"": SHAPE})
EVERY = pytest.mark.parametrize("method", [name for name in METHODS if name != "lowrank"])
"""``lowrank`` splits none of these kernels; see ``test_kinds.py``."""
GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "lopsided": {"conv_pads": [0, 1, 2, 3]},
    "strided": {"conv_strides": [2, 3], "conv_pads": [1, 0, 1, 0]},
    "dilated": {"conv_dilations": [2, 1], "conv_pads": [2, 1, 2, 1]},
    "dilated along the other axis": {"conv_dilations": [1, 2], "conv_pads": [0, 3, 1, 2]},
    "strided, dilated and lopsided": {
        "conv_strides": [2, 1], "conv_dilations": [1, 2], "conv_pads": [0, 1, 2, 3],
    },
    "same upper": {"conv_auto_pad": "SAME_UPPER"},
    "same upper, strided": {"conv_auto_pad": "SAME_UPPER", "conv_strides": [3, 2]},
    "same lower, strided": {"conv_auto_pad": "SAME_LOWER", "conv_strides": [2, 3]},
    "same lower, even kernel": {"conv_auto_pad": "SAME_LOWER", "weight": weights(5, 4, 2, 4)},
    "valid": {"conv_auto_pad": "VALID", "conv_strides": [2, 2]},
    "one channel in": {"weight": weights(5, 1, 3, 3)},
    "one channel out": {"weight": weights(1, 4, 3, 3)},
    "wide kernel": {"weight": weights(6, 4, 3, 5), "conv_pads": [1, 2, 1, 2]},
    "even kernel": {"weight": weights(6, 4, 4, 2)},
}  # fmt: skip


def at_full_rank(model: Model, method: str, *, fuse: bool = True) -> Model:
    """The model with every layer that the method can split, split at its full rank."""
    chosen = METHODS[method]
    choices = [
        Choice(layer.name, method, chosen.full_rank(layer.geometry), "", form)
        for layer in survey(model, fuse=fuse, methods=(chosen,))
        for form in chosen.forms[:1] or ("auto",)
        if layer.skip is None
    ]
    assert choices
    return convert(model, Plan(tuple(choices)), SplitOptions(fuse=fuse)).model


@EVERY
@pytest.mark.parametrize("options", GEOMETRIES.values(), ids=GEOMETRIES)
def test_onnx(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    original = opened(conv_model(**options), tmp_path)
    converted = at_full_rank(original, method)
    inputs = feeds(original)
    assert difference(run(original, inputs), run(converted, inputs)) < 1e-5
    converted.save(tmp_path / "out.onnx", provenance={}, plan=Plan(()))
    proto = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(proto, full_check=True)
    names = [n.name for n in proto.graph.node]
    assert len(names) >= 2
    assert len(set(names)) == len(names)


@EVERY
@pytest.mark.parametrize("opset", range(7, NEWEST_OPSET + 1))
def test_onnx_opsets(method: str, opset: int, tmp_path: Path) -> None:
    ir = 3 if opset == 7 else 4 if opset < 10 else 8 if opset < 19 else NEWEST_IR
    proto = conv_model(
        opset=opset,
        ir=ir,
        constants_as_inputs=ir == 3,
        conv_pads=[0, 1, 2, 1],
        conv_strides=[2, 1],
    )
    original = opened(proto, tmp_path)
    converted = at_full_rank(original, method)
    inputs = feeds(original)
    assert difference(run(original, inputs), run(converted, inputs)) < 1e-5
    converted.save(tmp_path / "out.onnx", provenance={}, plan=Plan(()))
    written = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert written.opset_import[0].version == opset
    assert written.ir_version == ir


@EVERY
def test_onnx_half_precision(method: str, tmp_path: Path) -> None:
    original = opened(conv_model(weights(6, 4, 3, 3, dtype=np.float16)), tmp_path)
    converted = at_full_rank(original, method)
    inputs = feeds(original)
    assert difference(run(original, inputs), run(converted, inputs)) < 5e-3


@EVERY
def test_onnx_merges_and_splits_in_one_pass(method: str, tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="conv", pads=[1, 2, 1, 0]),
        node("BatchNormalization", ["a", "g", "b", "m", "v"], ["c"], name="bn"),
        node("Relu", ["c"], ["y"]),
    ]
    constants = {"w": weights(6, 4, 3, 3), "g": weights(6, seed=1), "b": weights(6, seed=2),
                 "m": weights(6, seed=3), "v": weights(6, seed=4) ** 2 + 1}  # fmt: skip
    original = opened(onnx_nets.model(nodes, constants), tmp_path)
    converted = at_full_rank(original, method)
    inputs = feeds(original)
    assert "affine" not in [n.op for n in converted.graph().nodes]
    assert difference(run(original, inputs), converted.runner()(inputs)) < 1e-5


@EVERY
def test_onnx_shared_weights_stay_shared(method: str, tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
        node("Conv", ["a", "w"], ["y"], name="second", pads=[0, 1, 2, 1], strides=[2, 1]),
    ]
    original = opened(onnx_nets.model(nodes, {"w": weights(4, 4, 3, 3)}), tmp_path)
    converted: Any = at_full_rank(original, method)
    inputs = feeds(original)
    assert difference(run(original, inputs), run(converted, inputs)) < 1e-5
    assert len(converted.document.tensors) == len(METHODS[method].formula.terms)


def image() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("fuse", [True, False])
@EVERY
def test_state_dict(method: str, fuse: bool, tmp_path: Path) -> None:
    net = small_net().eval()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    converted = at_full_rank(open_model(tmp_path / "net.pt", ARCH), method, fuse=fuse)
    converted.save(tmp_path / "out.pt", provenance={}, plan=Plan(()))
    again = dacconv.apply(small_net(), tmp_path / "out.pt").eval()
    with torch.no_grad():
        assert relative(net(image()), again(image())) < 1e-5


@EVERY
def test_weights_alone(method: str, tmp_path: Path) -> None:
    """Stride and padding are not in the file: ``apply`` takes them from the network."""
    net = small_net().eval()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    converted = at_full_rank(open_model(tmp_path / "net.pt"), method)
    converted.save(tmp_path / "out.pt", provenance={}, plan=Plan(()))
    again = dacconv.apply(small_net(), tmp_path / "out.pt").eval()
    with torch.no_grad():
        assert relative(net(image()), again(image())) < 1e-5


@EVERY
def test_pickled_module(method: str, tmp_path: Path) -> None:
    net = small_net().eval()
    torch.save(net, tmp_path / "net.pt")
    options = LoadOptions(trust_pickle=True, input_shapes={"": SHAPE})
    converted = at_full_rank(open_model(tmp_path / "net.pt", options), method)
    converted.save(tmp_path / "out.pt", provenance={}, plan=Plan(()))
    again = torch.load(tmp_path / "out.pt", weights_only=False)
    with torch.no_grad():
        assert relative(net(image()), again(image())) < 1e-5


@EVERY
def test_exported_program(method: str, tmp_path: Path) -> None:
    net = small_net().eval()
    free = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(net, (image(),), dynamic_shapes=free)
    torch.export.save(program, tmp_path / "net.pt2")
    converted = at_full_rank(open_model(tmp_path / "net.pt2"), method)
    converted.save(tmp_path / "out.pt2", provenance={}, plan=Plan(()))
    again = torch.export.load(tmp_path / "out.pt2").module()
    more = torch.cat([image(), image(), image()])
    with torch.no_grad():
        assert relative(net(more), again(more)) < 1e-5
