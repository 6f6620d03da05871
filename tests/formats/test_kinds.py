"""Layers of every kind by every method in every format: the same function at full rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kind_nets
import onnx
import pytest
import torch
from torch import nn
from torch_nets import relative

import dacconv
from dacconv.conversion.pipeline import Conversion, convert, inspect, survey
from dacconv.decompositions import METHODS
from dacconv.formats import LoadOptions, Model, open_model
from dacconv.graph.types import Choice, Plan
from tests import onnx_nets
from tests.onnx_nets import difference, feeds, node, opened, run

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.parametrize("method", METHODS),
    pytest.mark.parametrize("kind", kind_nets.KINDS),
]


def split_at_full_rank(model: Model, method: str) -> Conversion:
    """The conversion of every layer that the method can split; what the report says is checked."""
    chosen = METHODS[method]
    choices = [
        Choice(layer.name, method, chosen.full_rank(layer.geometry), "", form)
        for layer in survey(model, methods=(chosen,))
        for form in chosen.forms[:1] or ("auto",)
        if layer.skip is None
    ]
    if not choices:
        pytest.skip(f"{method} splits no layer of this kind")
    converted = convert(model, Plan(tuple(choices)))
    rows = [row for row in converted.report.rows if row.rank]
    assert len(rows) == len(choices)
    assert all(row.kernel_error == pytest.approx(0, abs=1e-6) for row in rows)
    return converted


def same_costs(converted: Conversion, again: Model) -> None:
    """The costs in the report are those of the model that was written."""
    told, counted = converted.report.after, inspect(again).after
    assert (told.macs, told.params) == (counted.macs, counted.params)


def image(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(kind_nets.sizes_of(kind), generator=generator)


def as_onnx(kind: str) -> onnx.ModelProto:
    """The network as nodes: its layer, ReLU, the mean, and a Gemm."""
    layer, _, _, _, head = kind_nets.net_of(kind)
    assert isinstance(head, nn.Linear)
    constants = {"w": layer.weight.detach().numpy()}
    if layer.bias is not None:
        constants["b"] = layer.bias.detach().numpy()
    attributes: dict[str, Any] = {
        "strides": list(layer.stride), "dilations": list(layer.dilation), "group": layer.groups,
        "kernel_shape": list(layer.kernel_size),
    }  # fmt: skip
    if layer.padding == "same":
        attributes["auto_pad"] = "SAME_UPPER"
    else:
        attributes["pads"] = [*layer.padding, *layer.padding]
    if layer.transposed:
        attributes["output_padding"] = list(layer.output_padding)
    operator = "ConvTranspose" if layer.transposed else "Conv"
    nodes = [
        node(operator, ["x", *constants], ["a"], name="layer", **attributes),
        node("Relu", ["a"], ["c"]),
        node("GlobalAveragePool", ["c"], ["d"]),
        node("Flatten", ["d"], ["e"]),
        node("Gemm", ["e", "w2", "b2"], ["y"], name="head", transB=1),
    ]
    constants |= {"w2": head.weight.detach().numpy(), "b2": head.bias.detach().numpy()}
    return onnx_nets.model(nodes, constants, inputs={"x": kind_nets.sizes_of(kind)})


def test_onnx(method: str, kind: str, tmp_path: Path) -> None:
    original = opened(as_onnx(kind), tmp_path)
    converted = split_at_full_rank(original, method)
    inputs = feeds(original)
    assert difference(run(original, inputs), run(converted.model, inputs)) < 1e-5
    converted.save(tmp_path / "out.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)
    same_costs(converted, open_model(tmp_path / "out.onnx"))


def test_state_dict(method: str, kind: str, tmp_path: Path) -> None:
    net = kind_nets.net_of(kind)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    options = LoadOptions(
        arch=f"{kind_nets.__file__}:net_of",
        arch_args={"kind": kind},
        input_shapes={"": kind_nets.sizes_of(kind)},
    )
    converted = split_at_full_rank(open_model(tmp_path / "net.pt", options), method)
    converted.save(tmp_path / "out.pt")
    again = dacconv.apply(kind_nets.net_of(kind), tmp_path / "out.pt").eval()
    with torch.no_grad():
        assert relative(net(image(kind)), again(image(kind))) < 1e-5
    same_costs(converted, open_model(tmp_path / "out.pt", options))


def test_module(method: str, kind: str, tmp_path: Path) -> None:
    net = kind_nets.net_of(kind)
    torch.save(net, tmp_path / "net.pt")
    options = LoadOptions(trust_pickle=True, input_shapes={"": kind_nets.sizes_of(kind)})
    converted = split_at_full_rank(open_model(tmp_path / "net.pt", options), method)
    converted.save(tmp_path / "out.pt")
    again = torch.load(tmp_path / "out.pt", weights_only=False)
    with torch.no_grad():
        assert relative(net(image(kind)), again(image(kind))) < 1e-5
    same_costs(converted, open_model(tmp_path / "out.pt", options))


def test_exported_program(method: str, kind: str, tmp_path: Path) -> None:
    net = kind_nets.net_of(kind)
    program = torch.export.export(net, (image(kind),))
    torch.export.save(program, tmp_path / "net.pt2")
    converted = split_at_full_rank(open_model(tmp_path / "net.pt2"), method)
    converted.save(tmp_path / "out.pt2")
    again = torch.export.load(tmp_path / "out.pt2").module()
    with torch.no_grad():
        assert relative(net(image(kind)), again(image(kind))) < 1e-5
    same_costs(converted, open_model(tmp_path / "out.pt2"))
