from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dacconv.decompositions import METHODS
from dacconv.decompositions.costs import split_work
from dacconv.decompositions.formula import as_kernel
from dacconv.graph.cost import layer_cost, total
from dacconv.graph.types import Conv, Geometry

DAC = METHODS["dac"]


def run(conv: Conv, x: torch.Tensor) -> torch.Tensor:
    pads = [p for begin, end in reversed(conv.padding) for p in (begin, end)]
    bias = None if conv.bias is None else torch.from_numpy(conv.bias)
    return F.conv2d(
        F.pad(x, pads),
        torch.from_numpy(conv.weight),
        bias,
        stride=conv.stride,
        dilation=conv.dilation,
        groups=conv.groups,
    )


@st.composite
def convs(draw):
    out, channels = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    kernel = draw(st.sampled_from([(3, 3), (1, 7), (5, 1), (2, 2), (5, 3)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pair = st.tuples(st.integers(0, 3), st.integers(0, 3))
    return Conv(
        weight=rng.standard_normal((out, channels, *kernel)),
        bias=rng.standard_normal(out) if draw(st.booleans()) else None,
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        padding=(draw(pair), draw(pair)),
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
    )


def split(conv: Conv, rank: int):
    kernel = as_kernel(conv.weight, 1)
    svd = DAC.decompose(kernel)
    rank = min(rank, *svd.full_rank)
    return DAC.chain(conv, svd.factors(kernel, (rank,))), svd.relative_error((rank,))


@given(convs(), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_full_rank_reproduces_the_layer(conv, seed):
    x = torch.randn(2, conv.in_channels, 17, 19, generator=torch.Generator().manual_seed(seed))
    ((depthwise, pointwise),), error = split(conv, 10**9)
    expected = run(conv, x.double())
    assert error == 0
    torch.testing.assert_close(
        run(pointwise, run(depthwise, x.double())), expected, rtol=1e-9, atol=1e-9
    )


@given(convs(), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_the_discarded_energy_is_the_kernel_error(conv, rank):
    ((depthwise, pointwise),), error = split(conv, rank)
    channels = conv.in_channels
    r = depthwise.weight.shape[0] // channels
    assert depthwise.groups == channels
    filters = depthwise.weight.reshape(channels, r, *conv.kernel)
    mixing = pointwise.weight.reshape(conv.out_channels, channels, r)
    rebuilt = np.einsum("oir,irxy->oixy", mixing, filters)
    measured = np.linalg.norm(rebuilt - conv.weight) / np.linalg.norm(conv.weight)
    assert measured == pytest.approx(error, abs=1e-9)


def test_where_stride_padding_dilation_and_bias_go():
    conv = Conv(
        weight=np.ones((4, 3, 3, 3)),
        bias=np.arange(4.0),
        stride=(2, 1),
        padding=((0, 1), (2, 3)),
        dilation=(1, 2),
        auto_pad="SAME_UPPER",
        pad_mode="reflect",
    )
    ((depthwise, pointwise),), _ = split(conv, 2)
    assert depthwise.bias is None
    assert pointwise.bias is conv.bias
    for name in ("stride", "padding", "dilation", "auto_pad", "pad_mode"):
        assert getattr(depthwise, name) == getattr(conv, name)
    assert pointwise.stride == pointwise.dilation == (1, 1)
    assert pointwise.padding == ((0, 0), (0, 0))
    assert pointwise.auto_pad is None
    assert pointwise.weight.shape == (4, 6, 1, 1)


def test_the_cost_is_that_of_the_paper():
    geometry = Geometry(64, 128, (3, 3), (1, 1), (1, 1), 1, True, (56, 56), (56, 56))
    before = layer_cost(geometry)
    for rank in range(1, 10):
        after = total(
            layer_cost(part) for part in split_work(geometry, "dac", (rank,), "auto").convs
        )
        assert after.macs == before.macs * rank / 128 + before.macs * rank / 9
        assert after.params == 64 * rank * 9 + 128 * 64 * rank + 128


def test_sites_share_the_arrays():
    conv = Conv(np.ones((4, 3, 3, 3)), None, (1, 1), ((1, 1), (1, 1)), (1, 1))
    kernel = as_kernel(conv.weight, 1)
    factors = DAC.decompose(kernel).factors(kernel, (1,))
    ((a, b),), ((c, d),) = DAC.branches([conv, replace(conv, stride=(2, 2))], factors)
    assert a.weight is c.weight
    assert b.weight is d.weight
    assert c.stride == (2, 2)
