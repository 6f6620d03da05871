"""Which layer an entry of a profile belongs to."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import dacconv
from dacconv.formats.base import LoadOptions
from dacconv.formats.onnx.timing import open_model
from dacconv.formats.timing import Profile, Setting, Span, fastest
from dacconv.graph.types import Geometry, Graph, Node
from dacconv.timing.benchmark.layers import BETWEEN, LAYOUT, by_layer, layer_times, owner
from tests import cli_nets

G = Geometry(8, 8, (3, 3), (1, 1), (1, 1), 1, False, (4, 4), (4, 4))


def conv(name: str, source: str, result: str) -> Node:
    return Node(name, "conv", (source,), result, kind="Conv", weight=name, geometry=G)


ORIGINAL = Graph(
    (
        conv("a", "x", "va"),
        Node("bn", "affine", ("va",), "vbn", kind="BatchNormalization"),
        Node("relu", "other", ("vbn",), "vr", kind="Relu"),
        conv("b", "vr", "vb"),
        conv("c", "x", "vc"),
        Node("plus", "add", ("vb", "vc"), "vp", kind="Add"),
        Node("last", "other", ("vp",), "y", kind="Relu"),
        conv("a_1", "y", "z"),
    ),
    (),
    ("z",),
)
NAMES = ["a", "b", "c", "a_1"]
OWNED = {name: name for name in NAMES}


def found(*spans: Span, graph: Graph = ORIGINAL) -> dict[tuple[str, bool], float]:
    return by_layer(spans, graph, NAMES, OWNED, ORIGINAL)


def test_by_node_by_value_and_by_what_is_fused() -> None:
    assert found(Span("a", "Conv", 1)) == {("a", True): 1}
    assert found(Span("va_nchwc", "Conv", 1)) == {("a", True): 1}
    assert found(Span("vr_nchwc", "Conv", 1)) == {("a", True): 1}
    assert found(Span("relu", "Relu", 1)) == {("Relu", False): 1}
    assert found(Span("Conv_3", "Conv", 1, 3)) == {("b", True): 1}
    assert found(Span("Conv_2", "Conv", 1, 2)) == {("Conv", False): 1}
    assert found(Span("ReorderInput_token_1", "ReorderInput", 1)) == {(LAYOUT, False): 1}


def test_of_two_convs_behind_an_addition_the_one_that_is_left() -> None:
    spans = [Span("y_nchwc", "Conv", 2), Span("vc_nchwc", "Conv", 1)]
    assert found(*spans) == {("b", True): 2, ("c", True): 1}
    spans = [Span("vb_nchwc", "Conv", 1), Span("plus", "Conv", 2)]
    assert found(*spans) == {("b", True): 1, ("c", True): 2}


def test_what_takes_a_layers_place_is_that_layers() -> None:
    nodes = (
        conv("a_dw", "x", "t"),
        conv("a_pw", "t", "vbn"),
        conv("a_1_1_pw", "x", "s"),
        Node("a_1_sum", "add", ("s", "s"), "z", kind="Add"),
    )
    graph = Graph(nodes, (), ("z",))
    spans = [Span("a_dw", "Conv", 1), Span("vbn_nchwc", "Conv", 2), Span("a_1_1_pw", "Conv", 4)]
    spans.append(Span("a_1_sum", "Add", 8))
    assert found(*spans, graph=graph) == {("a", True): 3, ("a_1", True): 12}
    assert owner("layer1.0.conv1.0", ["layer1.0.conv1", "layer1.0"]) == "layer1.0.conv1"
    assert owner("conv10", ["conv1"]) is None


def test_rows_add_up_and_nothing_is_hidden() -> None:
    first = Profile((Span("a", "Conv", 3), Span("relu", "Relu", 1)), 5.0, 4)
    second = Profile((Span("a", "Conv", 1), Span("new", "Tile", 2)), 4.0, 4)
    table = layer_times([first, second], [ORIGINAL, ORIGINAL], 1, None)
    assert [(row.name, row.layer, row.ms) for row in table.rows] == [
        ("a", True, (3, 1)),
        ("Tile", False, (None, 2)),
        ("Relu", False, (1, None)),
        (BETWEEN, False, (1, 1)),
    ]
    for model in (0, 1):
        assert sum(row.ms[model] or 0 for row in table.rows) == table.total[model]


def test_the_fastest_quarter_of_the_runs_adds_up() -> None:
    times = {("a", "Conv", 0): {0: 9.0, 1: 1.0, 2: 5.0, 3: 7.0}, ("b", "Add", 1): {1: 1.0}}
    profile = fastest(times, [10.0, 3.0, 6.0, 8.0])
    assert profile == Profile((Span("a", "Conv", 1.0, 0), Span("b", "Add", 1.0, 1)), 3.0, 4)


@pytest.fixture(scope="module")
def nets(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nets")
    cli_nets.write_all(folder)
    for name in ("net.onnx", "net.pth"):
        options = {} if name.endswith("onnx") else {"arch": ARCH, "input_shapes": SHAPE}
        model = dacconv.load(folder / name, **options)
        done = dacconv.convert(model, dacconv.plan(model, rank=2, allow_costlier=True))
        done.save(folder / f"dac.{name}")
    return folder


ARCH = f"{cli_nets.__file__}:SmallNet"
SHAPE = {"": (1, 3, 12, 12)}
LAYERS = ["conv1", "conv2", "conv3", "point", "fc"]


def profiled(path: Path, adapter, options: LoadOptions) -> tuple[Profile, Graph]:
    timed = adapter.load_timed(path, options, Setting(threads=1))
    images = cli_nets.images(1)
    model = adapter.open_model(path, options)
    return timed.profile({model.inputs()[0].name: images}, 4), model.graph()


@pytest.mark.parametrize("name", ["net.onnx", "net.pth"])
def test_every_layer_of_a_real_profile_is_found_in_both_models(nets, name) -> None:
    from dacconv.formats.onnx import timing as onnx_time
    from dacconv.formats.torch import timing as torch_time

    adapter = onnx_time if name.endswith("onnx") else torch_time
    options = LoadOptions() if adapter is onnx_time else LoadOptions(SHAPE, arch=ARCH)
    both = [profiled(nets / file, adapter, options) for file in (name, f"dac.{name}")]
    table = layer_times([p for p, _ in both], [g for _, g in both], 1, 1)
    layers = [row for row in table.rows if row.layer]
    assert [row.name for row in layers] == LAYERS
    assert all(ms is not None for row in layers for ms in row.ms)
    kinds = {row.name for row in table.rows if not row.layer}
    assert not kinds & {"Conv", "conv2d", "Gemm", "linear"}
    assert all(row.ms[1] is not None for row in table.rows[:3])


def test_a_program_is_profiled_by_its_layers(tmp_path) -> None:
    import torch

    from dacconv.formats.torch import timing as torch_time

    program = torch.export.export(cli_nets.trained(), (torch.randn(1, 3, 12, 12),))
    torch.export.save(program, tmp_path / "net.pt2")
    profile, graph = profiled(tmp_path / "net.pt2", torch_time, LoadOptions())
    rows = layer_times([profile], [graph], 1, 1).rows
    assert [row.name for row in rows if row.layer] == LAYERS


def test_nodes_without_names_are_found_by_their_place(tmp_path) -> None:
    from dacconv.formats.onnx import timing as onnx_time

    model = cli_nets.onnx_model()
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, tmp_path / "net.onnx")
    profile, graph = profiled(tmp_path / "net.onnx", onnx_time, LoadOptions())
    rows = layer_times([profile], [graph], 1, 1).rows
    assert [row.name for row in rows if row.layer] == LAYERS


def test_time_inside_a_branch_is_counted_once(tmp_path) -> None:
    from dacconv.formats.onnx.timing import TimedOnnx

    def branch(name: str, value: float) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, 1, [1, 4])
        constant = numpy_helper.from_array(cli_nets.np.full((1, 4), value, "float32"), f"k{name}")
        node = helper.make_node("Add", ["x", f"k{name}"], [name], f"add{name}")
        return helper.make_graph([node], name, [], [out], [constant])

    node = helper.make_node(
        "If", ["which"], ["y"], "choice", then_branch=branch("t", 1), else_branch=branch("e", 2)
    )
    inputs = [
        helper.make_tensor_value_info("which", 9, [1]),
        helper.make_tensor_value_info("x", 1, [1, 4]),
    ]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", 1, [1, 4])])
    opset = helper.make_opsetid("", 13)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=7), tmp_path / "if.onnx")
    feeds = {"which": cli_nets.np.array([True]), "x": cli_nets.np.zeros((1, 4), "float32")}
    profile = TimedOnnx(tmp_path / "if.onnx", 1).profile(feeds, 4)
    assert [span.kind for span in profile.spans] == ["If"]
    assert onnxruntime.__version__ in open_model(tmp_path / "if.onnx", LoadOptions()).runtime
