"""The costs with another width, against the networks that really have it."""

import pytest
import torch

from dacconv import zoo
from dacconv.conversion.report_build import build_report
from dacconv.formats.torch.module.trace import trace
from dacconv.graph.types import Graph, ValueSpec
from dacconv.graph.what_if import with_width


def graph_of(name: str, size: int = 224, **arguments) -> Graph:
    with torch.device("meta"):
        net, image = zoo.build(name, **arguments).eval(), torch.empty(1, 3, size, size)
    made = trace(net, [image], {}, ["x"])
    return Graph(made.nodes, (ValueSpec("x", tuple(image.shape)),), made.outputs)


def costs(graph: Graph) -> list[tuple[str, int | None, int]]:
    report = build_report("module", graph)
    rows = [(row.name, row.before.macs, row.before.params) for row in report.rows]
    return [*rows, ("others", 0, sum(entry.params for entry in report.uncounted))]


@pytest.mark.parametrize(("width", "millions"), [(0.75, 325), (0.5, 149), (0.25, 41)])
def test_mobilenet_v1s_table_6_layer_by_layer(width, millions):
    imagined = costs(with_width(graph_of("mobilenet_v1"), width))
    assert imagined == costs(graph_of("mobilenet_v1", width=width))
    assert round(sum(macs or 0 for _, macs, _ in imagined) / 1e6) == millions


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "vgg11_bn"])
def test_other_families_with_half_their_width(name):
    """Residual sums, concatenations and linear layers behind a flattening."""
    whole, half = {"resnet18": (64, 32), "squeezenet1_1": (16, 8), "vgg11_bn": (64, 32)}[name]
    more = {"hidden": 2048} if name == "vgg11_bn" else {}
    assert graph_of(name, width=whole) is not None
    imagined = costs(with_width(graph_of(name), 0.5))
    assert imagined == costs(graph_of(name, width=half, **more))


def test_shufflenet_keeps_its_groups():
    graph = with_width(graph_of("shufflenet_v1"), 0.5)
    for node in graph.nodes:
        g = node.geometry
        if g is not None:
            assert g.in_channels % g.groups == 0
            assert g.out_channels % g.groups == 0
    macs = build_report("module", graph).before.macs
    assert macs == pytest.approx(137_460_672 / 4, rel=0.1)


def test_the_multiplier_one_changes_nothing_and_small_ones_leave_a_channel():
    graph = graph_of("resnet18", 32, width=4)
    assert with_width(graph, 1.0) is graph
    least = with_width(graph, 0.01)
    assert min(n.geometry.out_channels for n in least.nodes if n.geometry) == 1
