"""The costs of the zoo's networks against the tables of the papers, by dacconv's own count.

Everything is traced on the meta device: no weight and no activation has memory.
"""

from pathlib import Path

import pytest
import torch

from dacconv import zoo
from dacconv.conversion.report_build import build_report
from dacconv.formats.torch.module.trace import trace
from dacconv.graph.types import Graph, ValueSpec


def counted(name: str, size: int = 224, channels: int = 3, **arguments) -> tuple[int, int]:
    """MACs and parameters, those of BatchNorm included, as ``dacconv inspect`` counts them."""
    with torch.device("meta"):
        net, image = zoo.build(name, **arguments).eval(), torch.empty(1, channels, size, size)
    made = trace(net, [image], {}, ["x"])
    graph = Graph(made.nodes, (ValueSpec("x", tuple(image.shape)),), made.outputs)
    report = build_report("module", graph)
    params = report.before.params + sum(entry.params for entry in report.uncounted)
    assert params == sum(p.numel() for p in net.parameters())
    assert report.before.macs is not None
    return report.before.macs, params


@pytest.mark.parametrize(
    ("name", "size", "macs", "params"),
    [
        ("squeezenet1_0", 224, 818_924_576, 1_248_424),  # 1,248,424 in table 1 of the paper
        ("squeezenet1_1", 224, 349_151_936, 1_235_496),  # 2.4 x less computation, says its author
        ("xception", 299, 8_357_403_496, 22_855_952),  # 22,855,952 in table 3
        ("ghostnet", 224, 141_150_512, 5_182_508),  # 141 M and 5.2 M in table 7
        ("resnet18", 224, 1_814_073_344, 11_689_512),  # 1.8 G in table 1
        ("resnet34", 224, 3_663_761_408, 21_797_672),  # 3.6 G: the paper leaves the last layer out
        ("resnet101", 224, 7_801_405_440, 44_549_160),  # with the strides of torchvision
        ("vgg16", 224, 15_470_264_320, 138_357_544),  # 138 M in table 2
        ("vgg19", 224, 19_632_062_464, 143_667_240),  # 144 M
        ("densenet121", 224, 2_834_161_664, 7_978_856),
        ("resnet20_cifar", 32, 40_551_040, 269_722),  # 0.27 M in table 6
    ],
)
def test_costs_of_the_papers(name, size, macs, params):
    assert counted(name, size) == (macs, params)


@pytest.mark.parametrize(
    ("width", "size", "millions", "params"),
    [
        (1.0, 224, 569, 4.2),
        (0.75, 224, 325, 2.6),
        (0.5, 224, 149, 1.3),
        (0.25, 224, 41, 0.5),
        (1.0, 192, 418, 4.2),
        (1.0, 160, 290, 4.2),
        (1.0, 128, 186, 4.2),
    ],
)
def test_mobilenet_v1s_tables_6_and_7(width, size, millions, params):
    """At lower resolutions the paper also scales the linear layer, whose cost stays 1,024,000."""
    macs, weights = counted("mobilenet_v1", size, width=width)
    linear = int(1024 * width) * 1000
    scaled = (macs - linear) + linear * (size / 224) ** 2
    assert (round(scaled / 1e6), round(weights / 1e6, 1)) == (millions, params)
    assert round(macs / 1e6) == millions + (1 if size == 160 else 0)  # 290.66 M, not 290.16 M


def test_mobilenet_v2_has_the_papers_300_million_and_its_parameters_are_cut_off_not_rounded():
    macs, params = counted("mobilenet_v2")
    assert round(macs / 1e6, -1) == 300
    assert (macs, params) == (300_774_272, 3_504_872)
    batch_norm = 2 * 17_056  # scale and shift of every channel
    assert params - batch_norm == 3_470_760  # 3.4 M in the paper's table 4, 3.47 M in its code


@pytest.mark.parametrize(
    ("groups", "millions", "last"),
    [(1, 143, 576), (2, 140, 800), (3, 137, 960), (4, 133, 1088), (8, 137, 1536)],
)
def test_shufflenet_v1s_table_1(groups, millions, last):
    """The table leaves the linear layer out; the 140 M in the text are those of the whole family.

    With three groups that is 136.5 M, and 137.5 M with the linear layer.
    """
    macs, _ = counted("shufflenet_v1", groups=groups)
    assert round((macs - 1000 * last) / 1e6) == millions


def test_shufflenet_v2_counts_906_304_less_than_its_authors_code():
    """The first unit of stage 2 has 24 inputs and 116 outputs, and the paper does not divide them.

    The authors' code gives the shortcut 24 outputs and the other branch 92; torchvision, whose
    weights are the common ones, gives each of them 58.
    """
    macs, params = counted("shufflenet_v2")
    assert (macs, params) == (144_907_992, 2_278_604)
    theirs = 24 * 24 + 58 * 92
    ours = 24 * 58 + 58 * 58
    assert 28 * 28 * (theirs - ours) == 906_304
    assert round((macs + 906_304) / 1e6) == 146
    assert round(params / 1e6, 1) == 2.3


@pytest.mark.parametrize(
    ("width", "params"), [(0.5, 1_366_792), (1.5, 3_503_624), (2.0, 7_393_996)]
)
def test_the_other_widths_of_shufflenet_v2(width, params):
    with torch.device("meta"):
        net = zoo.build("shufflenet_v2", width=width)
    assert sum(p.numel() for p in net.parameters()) == params


def test_repvgg_a0():
    """A 1x1 conv beside every 3x3 conv: a ninth more, which is gone at inference."""
    macs, params = counted("repvgg_a0", deploy=True)
    assert (round(macs / 1e9, 1), params) == (1.4, 8_309_384)  # 1.4 G and 8.30 M in table 4
    trained, _ = counted("repvgg_a0")
    linear = 1280 * 1000
    assert 9 * (trained - linear) == 10 * (macs - linear)


def test_resnet50_with_the_strides_of_the_paper_costs_less_than_with_those_of_torchvision():
    assert counted("resnet50") == (4_089_184_256, 25_557_032)
    assert counted("resnet50", stride_in_1x1=True) == (3_857_973_248, 25_557_032)  # 3.8 G


@pytest.mark.parametrize(("depth", "params"), [(11, 132_863_336), (13, 133_047_848)])
def test_parameters_of_the_other_vggs(depth, params):
    with torch.device("meta"):
        plain, normed = zoo.build(f"vgg{depth}"), zoo.build(f"vgg{depth}_bn")
    norms = 2 * sum(m.num_features for m in normed.modules() if hasattr(m, "num_features"))
    assert sum(p.numel() for p in plain.parameters()) == params
    assert sum(p.numel() for p in normed.parameters()) == params + norms


def test_every_name_of_the_zoo_makes_a_network():
    with torch.device("meta"):
        for name in zoo.PLACES:
            assert list(zoo.build(name).parameters()), name
    assert set(zoo.PLACES) <= set(dir(zoo))
    for name in zoo.PLACES:
        assert callable(getattr(zoo, name)), name  # no file has the name of a network
    with pytest.raises(AttributeError, match="resnet19"):
        zoo.resnet19  # noqa: B018


def test_the_names_alone_do_not_load_torch():
    import subprocess
    import sys

    code = "import sys; import dacconv.zoo as z; z.PLACES; sys.exit('torch' in sys.modules)"
    root = Path(zoo.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
