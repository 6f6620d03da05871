"""Walking through a model conv by conv, in every format: what the guards rest on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conv_reference import convolve
from torch import nn

import dacconv
from dacconv.errors import UnsupportedError
from dacconv.formats.torch.module.walk import in_step


class Branched(nn.Module):
    """A residual net with a conv that is called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, (1, 3), padding="same", dilation=(1, 2))
        self.down = nn.Conv2d(8, 6, 3, 2)
        self.head = nn.Linear(6, 4)

    def forward(self, image):
        x = torch.relu(self.norm(self.first(image)))
        x = x + self.twice(torch.relu(self.twice(x)))
        return self.head(self.down(x).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Branched().eval()


def opened(net, kind, folder):
    example = torch.randn(2, 3, 12, 10)
    if kind == "module":
        path = folder / "net.pt"
        torch.save(net, path)
        return dacconv.load(path, trust_pickle=True, input_shapes={"": (1, 3, 12, 10)})
    path = folder / "net.pt2"
    batch = {"image": {0: torch.export.Dim("batch", min=1, max=64)}}
    torch.export.save(torch.export.export(net, (example,), dynamic_shapes=batch), path)
    return dacconv.load(path, input_shapes={"": (1, 3, 12, 10)})


@pytest.mark.parametrize("kind", ["module", "pt2"])
@pytest.mark.filterwarnings("ignore")
def test_a_walk_is_a_run(net, kind, tmp_path):
    model = opened(net, kind, tmp_path)
    layers = [layer for layer in dacconv.survey(model) if layer.skip is None and layer.op == "conv"]
    nodes = [site for layer in layers for site in layer.sites]
    rng = np.random.default_rng(0)
    name = model.inputs()[0].name
    feeds = [{name: rng.standard_normal((n, 3, 12, 10)).astype(np.float32)} for n in (1, 3)]
    seen = []

    def visit(node, xs):
        seen.append(node)
        return [convolve(model.conv(node), x) for x in xs]

    found = model.walk(nodes, visit, feeds)
    assert seen == nodes
    assert len(seen) == 4
    run = model.runner()
    for mine, given in zip(found, feeds, strict=True):
        for key, expected in run(given).items():
            np.testing.assert_allclose(mine[key], expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_what_the_visitor_answers_goes_on(net, tmp_path):
    model = opened(net, "module", tmp_path)
    feeds = [{model.inputs()[0].name: np.ones((1, 3, 12, 10), np.float32)}]

    def silent(node, xs):
        conv = model.conv(node)
        return [convolve(replace(conv, weight=0 * conv.weight), x) for x in xs]

    (found,) = model.walk(["down"], silent, feeds)
    bias = net.down.bias
    expected = (net.head.weight @ bias + net.head.bias).detach().numpy()
    np.testing.assert_allclose(found["output"][0], expected, atol=1e-5)


def test_an_error_in_one_batch_or_the_visitor_ends_the_walk():
    def run(index, stop):
        stop("a", torch.zeros(1))
        if index:
            raise ZeroDivisionError
        return 0

    with pytest.raises(ZeroDivisionError):
        in_step(run, 3, lambda node, xs: xs)
    with pytest.raises(KeyError):
        in_step(run, 3, lambda node, xs: {}[node])


def test_batches_that_part_ways_are_refused():
    with pytest.raises(UnsupportedError, match="other layers"):
        in_step(lambda index, stop: stop("ab"[index], torch.zeros(1)), 2, lambda node, xs: xs)
