"""Weights stored in half precision: what ONNX Runtime computes with them, and what stays."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

from dacconv.graph.types import Plan
from tests.onnx_nets import conv_model, model, node, opened, weights

DTYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(("ir", "opset"), [(3, 8), (8, 17)])
def test_the_rounded_weights_are_computed_with(
    precision: str, ir: int, opset: int, tmp_path: Path
) -> None:
    opset = max(opset, 13) if precision == "bf16" else opset
    net = opened(conv_model(opset=opset, ir=ir, constants_as_inputs=ir == 3), tmp_path)
    half, reasons = net.stored_in_half({"conv": precision})
    assert not reasons
    assert half.graph().node("conv").precision == precision
    rounded = net.conv("conv").weight.astype(DTYPES[precision]).astype(np.float32)
    np.testing.assert_array_equal(half.conv("conv").weight, rounded)
    (path,) = half.save(tmp_path / "half.onnx", provenance={}, plan=Plan(()))
    feeds = {"x": weights(1, 4, 9, 8)}
    for optimise in (True, False):
        first, second = (m.session(optimise=optimise) for m in (net, half))
        expected, actual = (s.run(None, feeds)[0] for s in (first, second))
        assert actual.dtype == np.float32
        assert np.linalg.norm(actual - expected) < 0.01 * np.linalg.norm(expected)
    assert path.stat().st_size


def test_what_stays_in_fp32(tmp_path: Path) -> None:
    big = weights(6, 4, 1, 1)
    big[0, 0] = 1e6
    nodes = [
        node("Conv", ["x", "big"], ["a"], name="overflows"),
        node("Conv", ["a", "both"], ["b"], name="shared"),
        node("ReduceSum", ["both"], ["s"], name="sum", keepdims=0),
        node("Add", ["b", "s"], ["c"]),
        node("Conv", ["c", "late"], ["y"], name="computed"),
    ]
    constants = {"big": big, "both": weights(6, 6, 1, 1)}
    proto = model(nodes, constants, inputs={"x": (1, 4, 9, 8), "late": (5, 6, 1, 1)})
    net = opened(proto, tmp_path)
    names = ("overflows", "shared", "computed")
    half, reasons = net.stored_in_half(dict.fromkeys(names, "fp16"))
    assert "overflow in fp16" in reasons["overflows"]
    assert "also read by Add" in reasons["shared"]
    assert "not a constant" in reasons["computed"]
    assert half.document.tensors.keys() == net.document.tensors.keys()


def test_half_precision_models_and_old_opsets_are_left_alone(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["y"], name="conv")]
    constants = {"w": weights(6, 4, 3, 3, dtype=np.float16)}
    net = opened(model(nodes, constants, dtype=TensorProto.FLOAT16), tmp_path)
    assert "not stored in float32" in net.stored_in_half({"conv": "fp16"})[1]["conv"]
    old = opened(conv_model(opset=11), tmp_path)
    assert "opset 13" in old.stored_in_half({"conv": "bf16"})[1]["conv"]


def test_a_weight_that_one_layer_keeps_is_kept_for_all(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="one", pads=[1] * 4),
        node("Conv", ["a", "w"], ["y"], name="two", pads=[1] * 4),
    ]
    net = opened(model(nodes, {"w": weights(4, 4, 3, 3)}), tmp_path)
    assert not net.stored_in_half({"one": "fp16", "two": "fp16"})[1]
    _, reasons = net.stored_in_half({"two": "fp16"})
    assert "also read by one" in reasons["two"]
