"""The little evaluator for chains of constants, against ONNX's own reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dacconv.formats.onnx.operators import OPERATORS, CannotEvaluate, evaluate
from tests.onnx_nets import model, node, opened, weights

F = np.float32
A = np.arange(24, dtype=F).reshape(2, 3, 4) - 5


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


CASES: dict[str, list[tuple[dict[str, Any], list[np.ndarray | None]]]] = {
    "Abs": [({}, [A])],
    "Add": [({}, [A, A[0]])],
    "Cast": [({"to": TensorProto.INT64}, [A]), ({"to": TensorProto.FLOAT16}, [A])],
    "Ceil": [({}, [A / 3])],
    "Concat": [({"axis": 1}, [A, A]), ({"axis": -1}, [A, A])],
    "ConstantOfShape": [({}, [ints(2, 3)])],
    "DequantizeLinear": [
        ({}, [np.array([[1, 2], [250, 4]], np.uint8), F(0.5), np.uint8(3)]),
        ({"axis": 0}, [np.ones((2, 3), np.int8), np.array([0.5, 2], F), np.array([0, 1], np.int8)]),
    ],
    "Div": [({}, [A, F(3)]), ({}, [ints(-7, 7, 8), ints(2, -2, 4)])],
    "Equal": [({}, [ints(1, 2), ints(1, 3)])],
    "Exp": [({}, [A / 9])],
    "Expand": [({}, [A[:, :1], ints(2, 3, 4)]), ({}, [A, ints(1, 1)])],
    "Flatten": [({}, [A]), ({"axis": 0}, [A]), ({"axis": -1}, [A])],
    "Floor": [({}, [A / 3])],
    "Gather": [({}, [A, ints(1, 0)]), ({"axis": 2}, [A, np.array(-1)])],
    "Identity": [({}, [A])],
    "Log": [({}, [A + 6])],
    "Max": [({}, [A, -A])],
    "Min": [({}, [A, -A])],
    "Mul": [({}, [A, A])],
    "Neg": [({}, [A])],
    "Pow": [({}, [A + 6, F(2)])],
    "Range": [({}, list(ints(1, 9, 3))), ({}, list(ints(5, 0, -2)))],
    "Reciprocal": [({}, [A + 6])],
    "ReduceL2": [({}, [A, ints(1, 2)]), ({"keepdims": 0}, [A, ints(0)])],
    "ReduceMean": [({}, [A, ints(-1)]), ({"keepdims": 0}, [A])],
    "ReduceProd": [({}, [A, ints(0)])],
    "ReduceSum": [({}, [A, ints(1)]), ({"noop_with_empty_axes": 1}, [A])],
    "Reshape": [({}, [A, ints(0, -1)]), ({}, [A, ints(4, 6)])],
    "Shape": [({}, [A]), ({"start": 1, "end": -1}, [A])],
    "Slice": [
        ({}, [A, ints(0, 1), ints(1, 3)]),
        ({}, [A, ints(-1), ints(-100), ints(2), ints(-1)]),
        ({}, [A, ints(1), ints(2**62), ints(1), ints(2)]),
        ({}, [A, ints(-3), ints(-1), ints(-1)]),
    ],
    "Sqrt": [({}, [A + 6])],
    "Squeeze": [({}, [A[:, :1], ints(1)]), ({}, [A[:, :1]])],
    "Sub": [({}, [A, F(2)])],
    "Transpose": [({}, [A]), ({"perm": [1, 2, 0]}, [A])],
    "Unsqueeze": [({}, [A, ints(0, 4)]), ({}, [A, ints(-1)])],
    "Where": [({}, [A > 3, A, -A])],
}  # fmt: skip


@pytest.mark.parametrize("op", sorted(OPERATORS.keys() - {"Constant"}))
def test_an_operator_does_what_onnx_says(op: str) -> None:
    for attributes, inputs in CASES[op]:
        names = [f"i{k}" if value is not None else "" for k, value in enumerate(inputs)]
        proto = node(op, names, ["y"], **attributes)
        values = {n: np.asarray(v) for n, v in zip(names, inputs, strict=True) if v is not None}
        graph = helper.make_graph(
            [proto],
            "one",
            [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
             for n, v in values.items()],
            [helper.make_tensor_value_info("y", 1, None)],
        )  # fmt: skip
        reference = ReferenceEvaluator(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
        )
        (expected,) = reference.run(None, values)
        actual = evaluate(proto, [values.get(name) for name in names])
        assert actual.dtype == expected.dtype
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"value": numpy_helper.from_array(A)}, A),
        ({"value_float": 2.5}, F(2.5)),
        ({"value_floats": [1.0, 2.0]}, np.array([1, 2], F)),
        ({"value_int": 3}, np.int64(3)),
        ({"value_ints": [3, 4]}, ints(3, 4)),
    ],
)
def test_constants(attributes: dict[str, Any], expected: np.ndarray) -> None:
    actual = evaluate(node("Constant", [], ["y"], **attributes), [])
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    ("proto", "inputs"),
    [
        (node("Squeeze", ["x"], ["y"], axes=[1]), [A[:, :1]]),
        (node("Unsqueeze", ["x"], ["y"], axes=[0]), [A]),
        (node("ReduceMean", ["x"], ["y"], axes=[0]), [A]),
        (node("Slice", ["x"], ["y"], starts=[1], ends=[9], axes=[1]), [A]),
    ],
)
def test_axes_were_attributes_once(proto: Any, inputs: list[np.ndarray]) -> None:
    expected = {
        "Squeeze": A[:, 0], "Unsqueeze": A[None], "ReduceMean": A.mean(0, keepdims=True),
        "Slice": A[:, 1:],
    }  # fmt: skip
    wanted = expected["Squeeze"].copy() if proto.op_type == "Squeeze" else expected[proto.op_type]
    np.testing.assert_allclose(evaluate(proto, inputs), wanted)


@pytest.mark.parametrize(
    ("proto", "inputs"),
    [
        (node("Erf", ["x"], ["y"]), [A]),
        (node("Add", ["x", "z"], ["y"], domain="custom"), [A, A]),
        (node("Add", ["x", "z"], ["y"]), [A, None]),
        (node("Add", ["x", "z"], ["y"]), [A, A[:, :2]]),
        (node("Cast", ["x"], ["y"], to=TensorProto.FLOAT8E4M3FN), [A]),
        (node("Constant", [], ["y"], value_string="text"), []),
        (node("ConstantOfShape", ["x"], ["y"]), [ints(2**40, 2**20)]),
        (node("Div", ["x", "z"], ["y"]), [ints(1), ints(0)]),
        (node("Reshape", ["x", "z"], ["y"]), [A, ints(5, 5)]),
        (node("Gather", ["x", "z"], ["y"]), [A, ints(7)]),
        (node("Unsqueeze", ["x"], ["y"]), [A]),
    ],
)
def test_what_is_beyond_it_is_refused(proto: Any, inputs: list[np.ndarray | None]) -> None:
    with pytest.raises(CannotEvaluate):
        evaluate(proto, inputs)


@given(
    st.lists(st.tuples(st.integers(-6, 6), st.integers(-6, 6), st.sampled_from([-2, -1, 1, 2])),
             min_size=1, max_size=3),
)  # fmt: skip
def test_slices_of_any_kind(parts: list[tuple[int, int, int]]) -> None:
    starts, ends, steps = (ints(*values) for values in zip(*parts, strict=True))
    names = ["x", "s", "e", "a", "t"]
    proto = node("Slice", names, ["y"])
    axes = ints(*range(len(parts)))
    values = dict(zip(names, [A, starts, ends, axes, steps], strict=True))
    (expected,) = ReferenceEvaluator(proto).run(None, values)
    np.testing.assert_array_equal(evaluate(proto, list(values.values())), expected)


def test_a_chain_is_followed_once_for_its_readers(tmp_path: Path) -> None:
    nodes = [
        node("Identity", ["w"], ["a"]),
        node("Transpose", ["a"], ["b"], perm=[0, 1, 3, 2]),
        node("Conv", ["x", "a"], ["c"], name="one"),
        node("Conv", ["c", "b"], ["y"], name="two"),
    ]
    original = opened(model(nodes, {"w": weights(4, 4, 3, 3), "unused": weights(2)}), tmp_path)
    constants = original.constants
    assert "a" in constants
    assert "c" not in constants
    assert constants.identity("a") == "w"
    assert constants.identity("b") == "b"
    assert constants.roots("b") == ("w",)
    assert [e.name for e in constants.users("w")] == ["one", "two"]
    assert constants.data_type("b") == TensorProto.FLOAT
    assert [n.skip for n in original.graph().nodes if n.op == "conv"] == [None, None]
    np.testing.assert_array_equal(
        original.conv("two").weight, weights(4, 4, 3, 3).transpose(0, 1, 3, 2)
    )
