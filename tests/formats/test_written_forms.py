"""The forms in every format: the same function in the runtime, before and after saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch_nets
from torch import nn
from torch_nets import relative, small_net

import dacconv
from dacconv.decompositions.forms import FORMS, possible
from dacconv.errors import UnsupportedError
from dacconv.formats import LoadOptions, open_model
from dacconv.graph.types import Plan
from tests import onnx_nets
from tests.onnx_nets import conv_model, difference, feeds, opened, run, weights

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
NEW = [form for form in FORMS if form != "multiplier"]
SHAPE = (2, 3, 24, 24)
ARCH = LoadOptions(arch=f"{torch_nets.__file__}:small_net", input_shapes={"": SHAPE})
GEOMETRIES: dict[str, dict[str, Any]] = {
    "lopsided": {"conv_pads": [0, 1, 2, 3]},
    "strided": {"conv_strides": [2, 3], "conv_pads": [1, 0, 1, 0]},
    "dilated": {"conv_dilations": [2, 1], "conv_pads": [2, 1, 2, 1]},
    "same lower, strided": {"conv_auto_pad": "SAME_LOWER", "conv_strides": [2, 3]},
    "one channel in": {"weight": weights(5, 1, 3, 3)},
    "1-D": {"weight": weights(5, 3, 4)},
    "3-D": {"weight": weights(5, 3, 2, 3, 2)},
}


@pytest.mark.parametrize("form", NEW)
@pytest.mark.parametrize("options", GEOMETRIES.values(), ids=GEOMETRIES)
def test_onnx(form: str, options: dict[str, Any], tmp_path: Path) -> None:
    original = opened(conv_model(**options), tmp_path)
    made = onnx_nets.split_all(original, form)
    inputs = feeds(original)
    assert difference(run(original, inputs), run(made, inputs)) < 1e-5
    made.save(tmp_path / "out.onnx", provenance={}, plan=Plan(()))
    proto = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(proto, full_check=True)
    kinds = [n.op_type for n in proto.graph.node]
    rank = kinds.count("Conv") - 1 if form == "concat" else kinds.count("Conv") // 2
    expected = {
        "sum": ["Conv", "Conv"] + ["Conv", "Conv", "Add"] * (rank - 1),
        "repeat": ["Concat", "Conv", "Conv"],
        "concat": ["Conv"] * rank + ["Concat", "Conv"],
    }
    assert kinds == expected[form]
    assert len({n.name for n in proto.graph.node}) == len(kinds)


def test_onnx_opset_7_and_half_precision(tmp_path: Path) -> None:
    for form in NEW:
        original = opened(conv_model(opset=7, ir=3, constants_as_inputs=True), tmp_path)
        made = onnx_nets.split_all(original, form)
        inputs = feeds(original)
        assert difference(run(original, inputs), run(made, inputs)) < 1e-5


def weights_of(net: nn.Module, path: Path) -> Path:
    torch.save(net.state_dict(), path)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_state_dict_is_rebuilt(form: str, tmp_path: Path) -> None:
    net = small_net()
    model: Any = open_model(weights_of(net, tmp_path / "net.pt"), ARCH)
    torch_nets.split_all(model, form).save(tmp_path / "out.pt", provenance={}, plan=Plan(()))
    again = dacconv.apply(small_net(), tmp_path / "out.pt").eval()
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert relative(net.eval()(x), again(x)) < 1e-5
    own = {type(m).__module__ for m in again.modules()} & {"dacconv.nn"}
    assert bool(own) == (form in ("sum", "concat"))
    # a converted file is a model like any other: it opens, and is not split again by accident
    layers = dacconv.survey(open_model(tmp_path / "out.pt", ARCH), fuse=False)
    assert len(layers) > len(dacconv.survey(model, fuse=False))


@pytest.mark.parametrize("form", FORMS)
def test_pickled_module_of_plain_layers(form: str, tmp_path: Path) -> None:
    net = small_net().eval()
    torch.save(net, tmp_path / "net.pt")
    options = LoadOptions(trust_pickle=True, input_shapes={"": SHAPE})
    model: Any = open_model(tmp_path / "net.pt", options)
    torch_nets.split_all(model, form).save(tmp_path / "out.pt", provenance={}, plan=Plan(()))
    again = torch.load(tmp_path / "out.pt", weights_only=False)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert relative(net(x), again(x)) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_exported_program_with_a_free_batch(form: str, tmp_path: Path) -> None:
    net = small_net().eval()
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    free = ({0: torch.export.Dim("batch", min=1, max=64)},)
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=free), tmp_path / "net.pt2")
    model: Any = open_model(tmp_path / "net.pt2")
    torch_nets.split_all(model, form).save(tmp_path / "out.pt2", provenance={}, plan=Plan(()))
    again = torch.export.load(tmp_path / "out.pt2").module()
    more = torch.cat([x, x, x])
    with torch.no_grad():
        assert relative(net(more), again(more)) < 1e-5


def test_shared_weights_stay_shared(tmp_path: Path) -> None:
    twice = onnx_nets.model(
        [
            onnx_nets.node("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
            onnx_nets.node("Conv", ["a", "w"], ["y"], name="second", pads=[1, 1, 1, 1]),
        ],
        {"w": weights(4, 4, 3, 3)},
    )
    for form in FORMS:
        original = opened(twice, tmp_path)
        made = onnx_nets.split_all(original, form)
        size = sum(np.prod(t.dims) for t in made.document.tensors.values())
        assert size == 4 * 4 * (9 + 4)  # depthwise and pointwise at full rank 4, once
        inputs = feeds(original)
        assert difference(run(original, inputs), run(made, inputs)) < 1e-5


def test_formats_say_which_forms_they_can_write(tmp_path: Path) -> None:
    path = weights_of(small_net(), tmp_path / "net.pt")
    module: Any = open_model(path, ARCH)
    assert possible(module.constructs(2, own_layers=False)) == ("multiplier", "repeat")
    assert possible(module.constructs(2, own_layers=True)) == tuple(FORMS)
    assert possible(module.constructs(3, own_layers=False)) == ("multiplier",)
    assert "repeat" not in possible(module.constructs(3, own_layers=True))
    alone: Any = open_model(path)
    assert possible(alone.constructs(2, own_layers=True)) == ("multiplier",)


def test_no_plain_layer_repeats_the_channels_of_a_3d_conv(tmp_path: Path) -> None:
    from dacconv.formats.torch.convs import interleave_specs
    from dacconv.graph.types import Repeat

    with pytest.raises(UnsupportedError, match="3-D"):
        interleave_specs(Repeat(2, 3, interleaved=True), 4)
