"""The costs of classic networks, known to the last MAC, from models traced by torch."""

from pathlib import Path

import pytest

from dacconv.conversion.report_build import build_report
from dacconv.decompositions import survey
from dacconv.formats.base import LoadOptions
from dacconv.formats.torch.module.model import TracedModel
from dacconv.graph.types import Choice, Graph
from dacconv.planning import Evidence, RankOptions, Selection
from dacconv.planning.plans import make_plan, settle
from scripts.archs import ResNet20
from tests.nets import resnet18, resnet50, vgg16

IMAGENET = (1, 3, 224, 224)


def graph(net, shape) -> Graph:
    return TracedModel(Path("net"), LoadOptions(input_shapes={"": shape}), net.eval()).graph()


def saved(graph: Graph, rank: int) -> float:
    layers = survey(graph)
    wanted = [Choice(layer.name, "dac", (rank,)) for layer in layers if layer.skip is None]
    made = build_report("module", graph, plan=settle(layers, wanted, allow_costlier=True))
    return round(100 * (made.saving() or 0), 2)


@pytest.mark.parametrize(
    ("net", "shape", "macs", "savings"),
    [
        (resnet18, IMAGENET, 1_814_073_344, [87.70, 76.50, 65.30, 54.09, 42.89, 31.68]),
        (resnet50, IMAGENET, 4_089_184_256, [42.69, 37.25, 31.82, 26.39, 20.95, 15.52]),
        (ResNet20, (1, 3, 32, 32), 40_551_040, [85.14, 70.28, 55.42, 40.55, 25.69, 10.83]),
    ],
)
def test_macs_and_savings_at_every_rank(net, shape, macs, savings):
    traced = graph(net(), shape)
    assert build_report("module", traced).before.macs == macs
    assert [saved(traced, rank) for rank in range(1, 7)] == savings


LAST_K = {
    4: [1.65, 3.30, 4.95, 11.55, 18.15, 21.46, 27.96, 34.47, 37.72, 44.04, 47.20, 53.15, 53.43],
    5: [1.31, 2.62, 3.93, 9.17, 14.41, 17.03, 22.15, 27.27, 29.83, 34.72, 37.16, 41.57, 41.78],
}


def test_vgg16():
    traced = graph(vgg16(), IMAGENET)
    whole = build_report("module", traced)
    assert whole.before.macs == 15_470_264_320
    assert [saved(traced, rank) for rank in range(1, 7)] == [
        87.65, 76.10, 64.55, 53.00, 41.45, 29.90,
    ]  # fmt: skip
    convs = sum(row.before.macs for row in whole.rows if row.op == "conv")
    for rank, expected in LAST_K.items():
        for k, percent in enumerate(expected, 1):
            options = RankOptions(rank=rank, allow_costlier=True)
            plan = make_plan(options, Selection(last_k=k), Evidence(survey(traced), None))
            made = build_report("module", traced, plan=plan)
            assert round(100 * (made.before.macs - made.after.macs) / convs, 2) == percent
