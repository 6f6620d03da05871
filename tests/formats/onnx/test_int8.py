"""Int8 of the kinds of ONNX models that there are; ONNX Runtime is the judge, at both levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dacconv.errors import UnsupportedError
from dacconv.formats.base import Feeds, Int8Recipe
from dacconv.formats.onnx.model import OnnxModel
from dacconv.formats.onnx.precision.int8 import OnnxQuantiser
from dacconv.formats.onnx.precision.ranges import BINS, Histogram
from dacconv.formats.onnx.run import runner
from tests.onnx_nets import model, node, opened, weights

ERROR = 0.06


def feeds_for(net: OnnxModel, count: int = 8) -> list[Feeds]:
    rng = np.random.default_rng(0)
    return [
        {
            spec.name: rng.standard_normal([n or 2 for n in spec.shape or ()]).astype(spec.dtype)
            for spec in net.inputs()
        }
        for _ in range(count)
    ]


def quantiser_of(proto: onnx.ModelProto, folder: Path) -> OnnxQuantiser:
    net = opened(proto, folder)
    return net.quantiser(feeds_for(net))


def int8_ops(net: OnnxModel) -> list[str]:
    """The layers whose weight lies behind DequantizeLinear."""
    return [n.name for n in net.graph().nodes if n.precision == "int8"]


def check_close(first: OnnxModel, second: OnnxModel, error: float = ERROR) -> None:
    """Both models give the same but for rounding, with ONNX Runtime's optimiser and without."""
    for optimise in (False, True):
        run, other = (runner(m.session(optimise=optimise)) for m in (first, second))
        for feeds in feeds_for(first, 2):
            expected, actual = run(feeds), other(feeds)
            assert list(expected) == list(actual)
            for name, value in expected.items():
                assert actual[name].dtype == value.dtype
                assert actual[name].shape == value.shape
                if value.dtype.kind == "f":
                    size = np.linalg.norm(value)
                    assert np.linalg.norm(actual[name] - value) <= error * size + 1e-6


def chain(*steps: Any, inputs: Sequence[int | str] = (2, 4, 9, 8)) -> dict[str, Any]:
    """Nodes from ``x`` to ``y``: an operator with constants and attributes for each step."""
    nodes, constants, value = [], {}, "x"
    for index, (op, arrays, attributes) in enumerate(steps):
        names = [f"c{index}.{i}" for i in range(len(arrays))]
        constants |= dict(zip(names, arrays, strict=True))
        result = "y" if index == len(steps) - 1 else f"v{index}"
        nodes.append(node(op, [value, *names], [result], name=f"n{index}", **attributes))
        value = result
    return {"nodes": nodes, "constants": constants, "inputs": {"x": inputs}}


def conv(o: int, i: int, *kernel: int, bias: bool = True, **attributes: Any) -> Any:
    arrays = [weights(o, i, *kernel, seed=o)] + ([weights(o, seed=i)] if bias else [])
    return ("Conv", arrays, attributes)


RELU = ("Relu", [], {})
CHAINS = {
    "one conv": chain(conv(6, 4, 3, 3)),
    "no bias": chain(conv(6, 4, 3, 3, bias=False), RELU, conv(5, 6, 1, 1, bias=False)),
    "depthwise": chain(conv(6, 4, 1, 1), RELU, conv(6, 1, 3, 3, group=6), conv(4, 6, 1, 1)),
    "grouped": chain(conv(6, 2, 3, 3, group=2), RELU, conv(4, 3, 3, 3, group=2)),
    "dilated, strided": chain(conv(6, 4, 3, 3, dilations=[2, 2], strides=[2, 1], pads=[2] * 4)),
    "auto_pad": chain(conv(6, 4, 3, 3, auto_pad="SAME_UPPER", strides=[2, 2]), RELU),
    "1-D": chain(conv(6, 4, 5), RELU, conv(5, 6, 3), inputs=(2, 4, 40)),
    "3-D": chain(conv(6, 4, 3, 3, 3), RELU, conv(5, 6, 1, 1, 1), inputs=(2, 4, 6, 5, 5)),
    "clip": chain(conv(6, 4, 3, 3), ("Clip", [np.float32(0), np.float32(6)], {}), conv(4, 6, 1, 1)),
    "pools": chain(conv(6, 4, 3, 3), RELU, ("MaxPool", [], {"kernel_shape": [2, 2]}),
                   conv(6, 6, 1, 1), ("AveragePool", [], {"kernel_shape": [2, 2]}),
                   conv(4, 6, 1, 1), ("GlobalAveragePool", [], {})),
    "gemm": chain(conv(6, 4, 3, 3), RELU, ("GlobalAveragePool", [], {}), ("Flatten", [], {}),
                  ("Gemm", [weights(5, 6), weights(5)], {"transB": 1})),
    "gemm, alpha and beta": chain(
        ("Gemm", [weights(6, 5), weights(5)], {"alpha": 0.5, "beta": 2.0}), RELU,
        ("Gemm", [weights(5, 3)], {}), inputs=(2, 6)),
    "matmul": chain(("MatMul", [weights(8, 5)], {}), ("Add", [weights(5)], {}), RELU,
                    ("MatMul", [weights(5, 3)], {}), inputs=(2, 7, 8)),
    "reshape between": chain(
        conv(6, 4, 1, 1), ("Reshape", [np.array([2, 4, 9, 12])], {}), conv(4, 4, 1, 1)),
    "transpose between": chain(
        conv(6, 4, 1, 1), ("Transpose", [], {"perm": [0, 1, 3, 2]}), conv(4, 6, 3, 3)),
    "leaky, pad, slice": chain(
        conv(6, 4, 1, 1), ("LeakyRelu", [], {"alpha": 0.1}),
        ("Pad", [np.array([0, 0, 1, 1, 0, 2, 1, 1])], {}),
        ("Slice", [np.array([0]), np.array([99]), np.array([2]), np.array([2])], {}),
        conv(4, 8, 1, 1)),
    "resize": chain(
        conv(6, 4, 1, 1),
        ("Resize", [np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)],
         {"mode": "nearest"}), conv(4, 6, 1, 1)),
    "free batch": chain(conv(6, 4, 3, 3), RELU, conv(4, 6, 3, 3), inputs=("n", 4, 9, 8)),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.parametrize("recipe", [Int8Recipe(), Int8Recipe(ranges="mse", correct_bias=True),
                                    Int8Recipe(activations="int8", reduce_range=True)])  # fmt: skip
def test_int8_computes_the_same_but_for_rounding(
    kind: str, recipe: Int8Recipe, tmp_path: Path
) -> None:
    quantiser = quantiser_of(model(**CHAINS[kind]), tmp_path)
    result = quantiser.quantised(recipe)
    layers = {n.name for n in quantiser.model.graph().nodes if n.op in ("conv", "linear")}
    assert not quantiser.reasons
    assert set(int8_ops(result)) == layers
    assert result.inputs() == quantiser.model.inputs()
    check_close(quantiser.model, result, 2 * ERROR if recipe.reduce_range else ERROR)


def test_kept_layers_stay_as_they_are(tmp_path: Path) -> None:
    quantiser = quantiser_of(model(**CHAINS["depthwise"]), tmp_path)
    result = quantiser.quantised(Int8Recipe(kept=frozenset({"n0"})))
    assert int8_ops(result) == ["n2", "n3"]
    np.testing.assert_array_equal(result.conv("n0").weight, quantiser.model.conv("n0").weight)
    check_close(quantiser.model, result)
    assert quantiser.quantised(Int8Recipe(kept=quantiser.layers)) is quantiser.model


def test_a_residual_sum_is_int8_between_layers(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w0"], ["a"], name="first", pads=[1] * 4),
        node("Relu", ["a"], ["r"], name="relu"),
        node("Conv", ["r", "w1"], ["b"], name="second", pads=[1] * 4),
        node("Add", ["b", "r"], ["s"], name="sum"),
        node("Concat", ["s", "r"], ["c"], name="join", axis=1),
        node("Conv", ["c", "w2"], ["z"], name="third"),
        node("Sigmoid", ["z"], ["y"], name="end"),
    ]
    constants = {"w0": weights(6, 4, 3, 3), "w1": weights(6, 6, 3, 3), "w2": weights(5, 12, 1, 1)}
    quantiser = quantiser_of(model(nodes, constants), tmp_path)
    assert set(quantiser.prepared.int8_nodes(())) == {
        "first", "relu", "second", "sum", "join", "third"
    }  # fmt: skip
    result = quantiser.quantised(Int8Recipe())
    check_close(quantiser.model, result)
    readers = {n.name: n.inputs for n in result.graph().nodes}
    assert all("DequantizeLinear" in name for name in readers["sum"])


def test_operators_after_the_last_layer_stay_in_fp32(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="conv"),
        node("Mul", ["a", "scale"], ["b"], name="mul"),
        node("Concat", ["b", "a"], ["y"], name="join", axis=1),
    ]
    constants = {"w": weights(6, 4, 3, 3), "scale": np.float32(1000)}
    quantiser = quantiser_of(model(nodes, constants), tmp_path)
    assert quantiser.prepared.int8_nodes(()) == ["conv"]


def behind(op: str) -> tuple[list[Any], dict[str, np.ndarray]]:
    """The weight of a conv behind an operator."""
    weight = weights(6, 4, 3, 3)
    constant = {
        "Cast": ("Cast", weight.astype(np.float16), {"to": 1}),
        "Transpose": ("Transpose", weight.transpose(3, 2, 1, 0), {"perm": [3, 2, 1, 0]}),
        "Identity": ("Identity", weight, {}),
    }
    if op == "Constant":
        made = node("Constant", [], ["w"], value=numpy_helper.from_array(weight))
        return [made], {}
    kind, stored, attributes = constant[op]
    return [node(kind, ["stored"], ["w"], **attributes)], {"stored": stored}


@pytest.mark.parametrize("op", ["Cast", "Transpose", "Identity", "Constant"])
def test_weights_behind_an_operator_are_quantised(op: str, tmp_path: Path) -> None:
    nodes, constants = behind(op)
    nodes.append(node("Conv", ["x", "w", "b"], ["y"], name="conv"))
    quantiser = quantiser_of(model(nodes, constants | {"b": weights(6)}), tmp_path)
    result = quantiser.quantised(Int8Recipe())
    assert int8_ops(result) == ["conv"]
    check_close(quantiser.model, result)


@pytest.mark.parametrize("opset", [8, 9, 11, 12])
@pytest.mark.parametrize("as_inputs", [True, False])
def test_old_models_are_brought_to_opset_13(opset: int, as_inputs: bool, tmp_path: Path) -> None:
    net = CHAINS["pools"] | {"opset": opset, "ir": 3 if as_inputs else 4}
    quantiser = quantiser_of(model(**net, constants_as_inputs=as_inputs), tmp_path)
    result = quantiser.quantised(Int8Recipe())
    assert result.document.opset == 13
    assert [value.name for value in result.document.rest.input] == ["x"]
    assert any("opset" in note for note in quantiser.notes)
    check_close(quantiser.model, result)


def test_a_shared_weight_stays_as_it_is_for_other_readers(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w", "b"], ["a"], name="one", pads=[1] * 4),
        node("Conv", ["x", "w", "b"], ["c"], name="two", pads=[1] * 4, dilations=[1, 1]),
        node("ReduceSum", ["w"], ["total"], name="sum", keepdims=0),
        node("ConvTranspose", ["a", "w"], ["d"], name="up", pads=[1] * 4),
        node("Add", ["b", "b"], ["twice"], name="bias"),
        node("Add", ["a", "c"], ["e"], name="add"),
        node("Mul", ["e", "total"], ["y"], name="scaled"),
        node("Identity", ["twice"], ["z"], name="out"),
    ]
    net = model(nodes, {"w": weights(4, 4, 3, 3), "b": weights(4)}, outputs=("y", "z", "d"))
    quantiser = quantiser_of(net, tmp_path)
    result = quantiser.quantised(Int8Recipe())
    assert set(int8_ops(result)) == {"one", "two"}
    assert "transposed" in quantiser.reasons["up"]
    feeds = feeds_for(quantiser.model, 1)[0]
    exact = [m.runner()(feeds)["z"] for m in (quantiser.model, result)]
    np.testing.assert_array_equal(*exact)
    check_close(quantiser.model, result)
    kept = quantiser.quantised(Int8Recipe(kept=frozenset({"one"})))
    assert int8_ops(kept) == ["two"]
    np.testing.assert_array_equal(kept.conv("one").weight, quantiser.model.conv("one").weight)


def test_a_weight_that_a_subgraph_reads_keeps_its_name(tmp_path: Path) -> None:
    def branch(name: str, nodes: list[Any]) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph(nodes, name, [], [value])

    then = branch("t", [node("Conv", ["x", "w"], ["t"], name="inner")])
    other = branch("e", [node("Identity", ["a"], ["e"])])
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="outer"),
        node("ReduceSum", ["a"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["flag"]),
        node("If", ["flag"], ["y"], then_branch=then, else_branch=other, name="if"),
    ]
    net = model(nodes, {"w": weights(6, 4, 3, 3), "zero": np.float32(0)})
    quantiser = quantiser_of(net, tmp_path)
    result = quantiser.quantised(Int8Recipe())
    assert int8_ops(result) == ["outer"]
    check_close(quantiser.model, result)


def test_local_functions_stay_in_fp32(tmp_path: Path) -> None:
    function = helper.make_function(
        "mine", "Relu", ["a"], ["b"], [node("Neg", ["a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="one"),
        node("Relu", ["a"], ["b"], domain="mine", name="call"),
        node("Conv", ["b", "v"], ["y"], name="two"),
    ]
    constants = {"w": weights(6, 4, 3, 3), "v": weights(5, 6, 1, 1)}
    net = model(nodes, constants, imports=[("mine", 1)], functions=[function])
    quantiser = quantiser_of(net, tmp_path)
    assert "call" not in quantiser.prepared.int8_nodes(())
    check_close(quantiser.model, quantiser.quantised(Int8Recipe()))


def test_several_inputs_and_values_that_are_no_floats(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="one"),
        node("Conv", ["z", "w"], ["b"], name="two"),
        node("Add", ["a", "b"], ["c"], name="sum"),
        node("Conv", ["c", "v"], ["y"], name="three"),
        node("ArgMax", ["y"], ["best"], axis=1, name="best"),
    ]
    constants = {"w": weights(6, 4, 3, 3), "v": weights(5, 6, 1, 1)}
    sizes = (1, 4, 9, 8)
    net = model(nodes, constants, inputs={"x": sizes, "z": sizes})
    net.graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, None))
    quantiser = quantiser_of(net, tmp_path)
    check_close(quantiser.model, quantiser.quantised(Int8Recipe()))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_stay_with_the_reason(value: float, tmp_path: Path) -> None:
    net: dict[str, Any] = chain(conv(6, 4, 3, 3), conv(5, 6, 1, 1))
    net["constants"]["c1.0"][0, 0] = value
    quantiser = quantiser_of(model(**net), tmp_path)
    assert "NaN or infinite" in quantiser.reasons["n1"]
    assert quantiser.layers == {"n0"}


def test_zero_and_constant_channels(tmp_path: Path) -> None:
    net: dict[str, Any] = chain(conv(6, 4, 3, 3), RELU, conv(5, 6, 1, 1))
    net["constants"]["c0.0"][:3] = 0
    net["constants"]["c0.1"][:] = 0
    quantiser = quantiser_of(model(**net), tmp_path)
    check_close(quantiser.model, quantiser.quantised(Int8Recipe()))


def test_models_that_are_quantised_already_are_refused(tmp_path: Path) -> None:
    quantiser = quantiser_of(model(**CHAINS["depthwise"]), tmp_path)
    partly = quantiser.quantised(Int8Recipe(kept=frozenset({"n0"})))
    with pytest.raises(UnsupportedError, match="quantised already"):
        partly.quantiser(feeds_for(partly))


def test_half_precision_models_are_refused(tmp_path: Path) -> None:
    weight = weights(6, 4, 3, 3, dtype=np.float16)
    nodes = [node("Conv", ["x", "w"], ["y"], name="conv")]
    net = opened(model(nodes, {"w": weight}, dtype=TensorProto.FLOAT16), tmp_path)
    with pytest.raises(UnsupportedError, match="only float32 is quantised"):
        net.quantiser(feeds_for(net))


def test_a_model_without_layers_is_refused(tmp_path: Path) -> None:
    net = opened(model([node("Relu", ["x"], ["y"])], {}), tmp_path)
    with pytest.raises(UnsupportedError, match="no layer can be int8"):
        net.quantiser(feeds_for(net))


def observed(*arrays: np.ndarray) -> Histogram:
    histogram = Histogram()
    for array in arrays:
        histogram.add(array)
    return histogram


def test_a_histogram_counts_whatever_comes_first() -> None:
    rng = np.random.default_rng(0)
    parts: list[np.ndarray] = [rng.normal(0, s, 1000).astype(np.float32) for s in (0.1, 1, 30)]
    together, apart = observed(np.concatenate(parts)), observed(*parts)
    np.testing.assert_array_equal(together.counts, apart.counts)
    assert together.counts.sum() == 3000
    assert (apart.low, apart.high) == (together.low, together.high)
    assert len(apart.counts) == BINS


@pytest.mark.parametrize("method", ["min-max", "percentile", "mse"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_ranges_hold_zero_and_lie_within_what_was_observed(method: str, symmetric: bool) -> None:
    cases: Mapping[str, np.ndarray] = {
        "normal": np.random.default_rng(0).standard_normal(10_000),
        "positive": np.abs(np.random.default_rng(1).standard_normal(10_000)) + 3,
        "negative": -np.ones(5),
        "zero": np.zeros(9),
        "empty": np.zeros(0),
        "not finite": np.array([1, np.nan, np.inf, -2]),
        "tiny": np.full(5, 1e-30),
    }
    for values in cases.values():
        histogram = observed(values.astype(np.float32))
        low, high = histogram.range(method, symmetric=symmetric)
        assert low <= 0 <= high
        assert np.isfinite([low, high]).all()
        limit = max(-histogram.low, histogram.high)
        assert -limit <= low
        assert high <= limit


def test_outliers_are_clipped_by_percentile_and_by_least_squares() -> None:
    values = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    values[:3] = 20
    histogram = observed(values)
    assert histogram.range("min-max")[1] == 20
    assert histogram.range("percentile")[1] < 6
    assert histogram.range("mse")[1] < 15
