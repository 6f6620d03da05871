"""The choices of a precision: ranges, sensitive layers, exceptions, and what they do to a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import dacconv
from dacconv.calibration.prepare import CalibrationOptions
from dacconv.conversion.int8 import quantised
from dacconv.conversion.pipeline import view_of
from dacconv.conversion.precision import layer_nodes
from dacconv.conversion.range_inputs import RangeInputs, range_inputs
from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.base import Feeds, Int8Recipe, Runner
from dacconv.graph.plan_json import plan_to_dict
from dacconv.graph.precision import Precision, parse_precision
from dacconv.planning.plans import plan_from_dict
from tests.cli_nets import onnx_model
from tests.onnx_nets import conv_model, model, node, opened, weights


@pytest.fixture
def net(tmp_path: Path) -> dacconv.Model:
    path = tmp_path / "net.onnx"
    onnx.save(onnx_model(), path)
    return dacconv.load(path)


@dataclass
class FakeModel:
    """Adds to its input the harm of the layers that are in int8."""

    harm: Mapping[str, float]
    recipe: Int8Recipe | None = None
    recipes: list[Int8Recipe] = field(default_factory=list)
    reasons: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> frozenset[str]:
        return frozenset(self.harm) - frozenset(self.reasons)

    def precision_refusal(self, precision: str) -> str | None:
        return None

    def quantiser(self, batches: Any, *, threads: int | None = None) -> Any:
        return self

    def quantised(self, recipe: Int8Recipe) -> Any:
        self.recipes.append(recipe)
        return replace(self, recipe=recipe)

    def runner_as_written(self, model: Any) -> Runner:
        return model.runner()

    def runner(self, *, threads: int | None = None) -> Runner:
        recipe, size = self.recipe, 0.0
        if recipe is not None:
            lowered = [h for n, h in self.harm.items() if n not in recipe.kept | set(self.reasons)]
            worse = {"min-max": 1.0, "percentile": 1.5, "mse": 0.9}[recipe.ranges]
            size = float(np.sqrt(sum(lowered) * worse * (0.5 if recipe.correct_bias else 1)))

        def run(feeds: Feeds) -> dict[str, Any]:
            return {"y": feeds["x"] + np.float32(size)}

        return run


def chosen(harm: Mapping[str, float], precision: str = "int8", **more: Any) -> Any:
    feeds = [{"x": np.array([[-1.0], [1.0]], np.float32)}]
    inputs = RangeInputs(feeds, feeds, [], "two numbers")
    nodes = {name: [name] for name in harm}
    fake = FakeModel(harm, **more)
    return quantised(fake, parse_precision(precision, ""), nodes, inputs)  # type: ignore[arg-type]


def test_the_settings_of_the_least_damage_are_taken() -> None:
    _, settled, check = chosen({"a": 1e-4, "b": 1e-4})
    assert (settled.ranges, settled.correct_bias) == ("mse", True)
    assert dict(settled.layers) == {"a": "int8", "b": "int8"}
    assert settled.complete
    assert [what for what, _ in check.tried] == [
        "min-max", "percentile", "mse", "mse, biases corrected"
    ]  # fmt: skip
    assert check.damage == pytest.approx(2e-4 * 0.9 * 0.5, rel=1e-3)


def test_the_most_sensitive_layers_go_back_to_fp32() -> None:
    _, settled, check = chosen({"a": 1e-4, "b": 1.0, "c": 2e-4, "d": 0.3, "e": 1e-4})
    assert {n for n, p in settled.layers if p == "fp32"} == {"b", "d"}
    assert "sensitive" in next(e.reason for e in check.layers if e.layer == "b")
    assert check.damage is not None
    assert check.limit is not None
    assert check.damage <= check.limit


def test_as_few_layers_as_are_enough_go_back() -> None:
    harm = {**dict.fromkeys("abcdefghijk", 0.1), **dict.fromkeys("lmno", 1e-4)}
    _, settled, check = chosen(harm)
    assert sum(p == "fp32" for _, p in settled.layers) == 11
    assert check.damage is not None
    assert check.damage <= 0.01


def test_one_layer_stays_where_none_is_harmless() -> None:
    _, settled, _ = chosen(dict.fromkeys("abcdef", 1.0))
    assert sum(p == "int8" for _, p in settled.layers) == 1


def test_exceptions_and_reasons() -> None:
    _, settled, check = chosen(
        {"a": 1e-4, "b": 1e-4, "c": 1e-4}, "int8,b=fp32", reasons={"c": "no kernel"}
    )
    assert dict(settled.layers) == {"a": "int8", "b": "fp32", "c": "fp32"}
    reasons = {entry.layer: entry.reason for entry in check.layers}
    assert reasons == {"a": "", "b": "as it was asked for", "c": "no kernel"}
    with pytest.raises(UsageError, match="layer c cannot be int8: no kernel"):
        chosen({"a": 1e-4, "c": 1e-4}, "int8,c=int8", reasons={"c": "no kernel"})


def test_the_nodes_of_split_layers(net: dacconv.Model) -> None:
    plan = dacconv.plan(net, ranks={"conv2": 2, "conv3": 3}, form="sum")
    converted = dacconv.convert(net, plan).model
    layers = dacconv.survey(net)
    merged = view_of(net, fuse=True).graph()
    nodes = layer_nodes(merged, converted.graph(), layers)
    assert nodes["conv1"]
    assert len(nodes["conv2"]) == 5
    assert nodes["fc"] == ["fc"]
    names = [name for each in nodes.values() for name in each]
    assert len(names) == len(set(names))
    assert set(nodes) == {layer.name for layer in layers}


def test_a_plan_with_a_precision_is_read_back(net: dacconv.Model) -> None:
    plan = dacconv.plan(net, rank=2, precision="int8,conv1=fp32")
    assert plan.precision == Precision("int8", (("conv1", "fp32"),))
    assert plan_from_dict(plan_to_dict(plan), "").precision == plan.precision
    result = dacconv.convert(net, plan)
    settled = result.plan.precision
    assert settled is not None
    assert settled.complete
    assert dict(settled.layers)["conv1"] == "fp32"
    assert plan_from_dict(plan_to_dict(result.plan), "").precision == settled
    again = dacconv.convert(net, result.plan)
    assert again.plan == result.plan
    stored = [{n.name: n.precision for n in each.model.graph().nodes} for each in (result, again)]
    assert stored[0] == stored[1]


@pytest.mark.parametrize(
    ("data", "message"),
    [({"default": "int4"}, "default cannot be"), ({"layers": {"a": "int9"}}, "layer a cannot be"),
     ({"layers": []}, "not an object"), ("int8", "not an object"), ({"range": 1}, "unknown key"),
     ({"reduce_range": 1}, "reduce_range cannot be"), ({"ranges": ["mse"]}, "ranges cannot be")],
)  # fmt: skip
def test_damaged_precisions_in_plans(data: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_from_dict({"layers": [], "precision": data}, "plan.json")


@pytest.mark.parametrize("text", ["int9", "int8,fp16", "int8,=fp32", "int8,conv1=", "", "conv1"])
def test_mistyped_precisions(text: str) -> None:
    with pytest.raises(UsageError):
        parse_precision(text, "--precision")


def test_an_exception_that_matches_no_layer(net: dacconv.Model) -> None:
    plan = dacconv.plan(net, precision="int8,conf1=fp32")
    with pytest.raises(UsageError, match="matches no layer") as caught:
        dacconv.convert(net, plan)
    assert "conv1" in str(caught.value)


def test_models_without_images_get_noise(tmp_path: Path) -> None:
    proto = model([node("MatMul", ["x", "w"], ["y"])], {"w": weights(6, 5)}, inputs={"x": (4, 6)})
    inputs = range_inputs(opened(proto, tmp_path), CalibrationOptions("synthetic"))
    assert "noise" in inputs.description
    assert len(inputs.fitted) == len(inputs.held) > 2


def test_a_model_of_unknown_size_needs_it(tmp_path: Path) -> None:
    proto = conv_model()
    del proto.graph.input[0].type.tensor_type.shape.dim[2:]
    proto.graph.input[0].type.tensor_type.shape.dim.add().dim_param = "h"
    proto.graph.input[0].type.tensor_type.shape.dim.add().dim_param = "w"
    net = opened(proto, tmp_path)
    with pytest.raises(UnsupportedError, match=r"input.shape"):
        dacconv.convert(net, dacconv.plan(net, precision="int8"))
