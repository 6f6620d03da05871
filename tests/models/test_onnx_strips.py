"""Graphs in strips against the same graphs whole, in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dacconv.models.onnx_model import OnnxModel
from dacconv.types import Plan
from tests.models.onnx_nets import difference, feeds, run, split_all, weights
from tests.models.strip_nets import SIDE, Net, vgg


def same(whole: OnnxModel, strips: OnnxModel, tolerance: float = 1e-6) -> None:
    inputs = feeds(whole)
    assert difference(run(whole, inputs), run(strips, inputs)) < tolerance


@pytest.mark.parametrize("form", ["multiplier", "sum", "repeat", "concat"])
def test_every_form_in_any_number_of_strips(form: str, tmp_path: Path) -> None:
    whole = split_all(vgg().open(tmp_path), form)
    found = whole.stretch()
    assert found is not None
    assert (found.begin, found.end, found.rows) == ("x", "v4", 12)
    for count in range(1, 13):
        made = whole.in_strips(count)
        same(whole, made)
        kinds = [entry.op for entry in made.document.entries]
        assert kinds.count("Slice") == count
        assert kinds.count("MaxPool") == count
    path = tmp_path / "strips.onnx"
    made.save(path, provenance={}, plan=Plan((), strips=12))
    onnx.checker.check_model(onnx.load(path), full_check=True)
    # every weight is there once, however many strips read it
    names = [tensor.name for tensor in onnx.load(path).graph.initializer]
    assert len(names) == len(set(names)) == len(whole.document.tensors) + 3 * 12


def test_borders_repeat_what_both_sides_need(tmp_path: Path) -> None:
    found = vgg().open(tmp_path).stretch()
    assert found is not None
    # one row above and one below of the first conv: 8 x 3 x 3 x 3 multiply-adds for 24 columns
    assert found.repeated == 2 * 8 * 27 * SIDE
    assert found.count == 1  # all of it lies in a core's cache anyway


def test_large_values_ask_for_strips_that_fit_the_cache(tmp_path: Path) -> None:
    found = vgg().open(tmp_path, (1, 3, 512, 512)).stretch()
    assert found is not None
    assert found.count == 4  # 8 x 512 x 512 x 4 bytes are 8 MiB


@st.composite
def nets(draw: st.DrawFn) -> Net:
    """Chains of what can be cut into rows, with branches that see the same rows."""
    net = Net()
    small = st.integers(0, 1)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "max", "mean", "point", "branches"]))
        kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        strides = list(draw(st.tuples(st.integers(1, 2), st.integers(1, 2))))
        pads = [draw(small) * (kernel[i % 2] > 1) for i in range(4)]
        if kind == "conv":
            auto = draw(st.sampled_from(["", "SAME_UPPER", "SAME_LOWER", "VALID"]))
            around = [draw(small) for _ in range(4)]
            window: dict[str, Any] = {"auto_pad": auto} if auto else {"pads": around}
            dilations = [1, 1] if auto else list(draw(st.tuples(st.integers(1, 2), small))[:1]) * 2
            net.conv(draw(st.integers(2, 5)), kernel, strides=strides, dilations=dilations,
                     **window)  # fmt: skip
        elif kind == "max":
            net.add("MaxPool", kernel_shape=list(kernel), strides=strides, pads=pads,
                    ceil_mode=draw(small))  # fmt: skip
        elif kind == "mean":
            net.add("AveragePool", kernel_shape=list(kernel), strides=strides, pads=pads,
                    count_include_pad=draw(small))  # fmt: skip
        elif kind == "point":
            pointwise(net, draw(st.sampled_from(["Relu", "PRelu", "Mul", "Bn"])))
        else:
            branches(net, kernel, pads, draw(st.sampled_from(["Add", "Concat"])))
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    net.add("Relu")
    return net


def pointwise(net: Net, op: str) -> None:
    per_channel = [net.constant(np.abs(weights(net.channels, seed=s)) + 0.1) for s in range(4)]
    if op == "Bn":
        net.add("BatchNormalization", *per_channel)
    elif op == "Relu":
        net.add("Relu")
    else:
        net.add(op, net.constant(weights(net.channels, 1, 1)))


def branches(net: Net, kernel: tuple[int, int], pads: list[int], join: str) -> None:
    source, channels = net.last, net.channels
    first = net.conv(4, kernel, pads=pads)
    net.last, net.channels = source, channels
    net.conv(4, kernel, pads=pads)
    if join == "Add":
        net.add("Add", first)
    else:
        net.add("Concat", first, axis=1)
        net.channels = 8


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(net=nets(), data=st.data())
def test_whatever_is_cut_into_strips_stays_the_same(
    net: Net, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # large enough for four windows of five rows that go on by two, and a pooling
    whole = net.open(tmp_path_factory.mktemp("net"), (2, 3, 83, 81))
    found = whole.stretch()
    if found is not None:
        same(whole, whole.in_strips(data.draw(st.integers(1, found.rows))), 1e-5)


@pytest.mark.parametrize("opset", [7, 9, 10, 13, 22])
def test_every_opset(opset: int, tmp_path: Path) -> None:
    whole = vgg().open(tmp_path, opset=opset)
    made = whole.in_strips(5)
    same(whole, made)
    made.save(tmp_path / "strips.onnx", provenance={}, plan=Plan(()))
    onnx.checker.check_model(onnx.load(tmp_path / "strips.onnx"), full_check=True)


def test_weights_that_are_inputs_as_well(tmp_path: Path) -> None:
    whole = vgg().open(tmp_path, ir=3, opset=9, constants_as_inputs=True)
    same(whole, whole.in_strips(3))


def test_a_row_that_sees_nothing_but_padding_stays_with_its_neighbours(tmp_path: Path) -> None:
    net = Net()
    net.conv(8, (1, 1), pads=[1] * 4)
    net.conv(6, (1, 1), strides=[2, 2])
    assert net.open(tmp_path).stretch() is None


def test_a_free_batch_stays_free(tmp_path: Path) -> None:
    made = vgg().open(tmp_path, ("n", 3, SIDE, SIDE)).in_strips(4)
    for batch in (1, 5):
        x = np.random.default_rng(0).standard_normal((batch, 3, SIDE, SIDE)).astype(np.float32)
        assert made.runner()({"x": x})["y"].shape == (batch, 4, 12, 12)


def residual() -> Net:
    net = Net()
    before = net.conv(6, pads=[1] * 4)
    net.conv(6, pads=[1] * 4)
    net.add("Add", before)
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    return net


def softmax() -> Net:
    net = Net()
    net.conv(6, pads=[1] * 4)
    net.add("Softmax", axis=2)
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    return net


def by_row() -> Net:
    net = Net()
    net.conv(6, pads=[1] * 4)
    net.add("Mul", net.constant(weights(SIDE, 1)))
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    return net


def unshrunk() -> Net:
    net = Net()
    net.conv(6, pads=[1] * 4)
    return net


@pytest.mark.parametrize("net", [residual, softmax, by_row, unshrunk])
def test_what_is_no_function_of_few_rows_stays_whole(net: Any, tmp_path: Path) -> None:
    whole = net().open(tmp_path)
    assert whole.stretch() is None
    with pytest.raises(ValueError, match="strips of 0 rows"):
        whole.in_strips(2)


def test_a_free_size_stays_whole_whatever_size_it_is_run_at(tmp_path: Path) -> None:
    taken = {"": (1, 3, SIDE, SIDE)}
    assert vgg().open(tmp_path, (1, 3, "height", SIDE), taken=taken).stretch() is None
