"""Every form is the same function: the judge is torch, on the neutral values themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacconv.decompositions import METHODS
from dacconv.decompositions.costs import split_work
from dacconv.decompositions.forms import EVERYTHING, FORMS, Reordering, lower, multiplier_of
from dacconv.decompositions.formula import Factors, as_kernel
from dacconv.graph.types import Branches, Conv, Geometry, Parallel, Repeat, Step, convs_of

DAC = METHODS["dac"]


def split(conv: Conv, rank: int) -> Branches:
    return DAC.chain(conv, factors_of(conv, rank))


def factors_of(conv: Conv, rank: int) -> Factors:
    kernel = as_kernel(conv.weight, 1)
    return DAC.decompose(kernel).factors(kernel, (rank,))


def run(conv: Step, x: torch.Tensor) -> torch.Tensor:
    """One step of a chain."""
    if isinstance(conv, Parallel):
        return torch.cat([run(each, x) for each in conv.convs], dim=1)
    if isinstance(conv, Repeat):
        if conv.interleaved:
            return x.repeat_interleave(conv.copies, 1)
        return x.repeat(1, conv.copies, *(1,) * conv.axes)
    (top, bottom), (left, right) = conv.padding
    x = torch.nn.functional.pad(x, (left, right, top, bottom))
    bias = None if conv.bias is None else torch.from_numpy(conv.bias)
    return torch.nn.functional.conv2d(
        x, torch.from_numpy(conv.weight), bias, conv.stride, 0, conv.dilation, conv.groups
    )


def total(branches: Branches, x: torch.Tensor) -> torch.Tensor:
    results = []
    for chain in branches:
        value = x
        for conv in chain:
            value = run(conv, value)
        results.append(value)
    return torch.stack(results).sum(0)


@st.composite
def convs(draw: st.DrawFn) -> Conv:
    sizes = st.integers(1, 3)
    kernel = draw(sizes), draw(sizes)
    channels, out = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    pads = st.tuples(st.integers(0, 2), st.integers(0, 2))
    return Conv(
        weight=rng.standard_normal((out, channels, *kernel)),
        bias=rng.standard_normal(out) if draw(st.booleans()) else None,
        stride=(draw(sizes), draw(sizes)),
        padding=(draw(pads), draw(pads)),
        dilation=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
    )


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25, deadline=None)
@given(conv=convs(), rank=st.integers(1, 9))
def test_every_form_is_the_same_function(form: str, conv: Conv, rank: int) -> None:
    rank = min(rank, conv.kernel[0] * conv.kernel[1], conv.out_channels)
    plain = split(conv, rank)
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((2, conv.in_channels, 9, 8)))
    for constructs in (EVERYTHING, {"sum", "parallel", "interleave"}):
        made = lower(plain, form, Reordering(), constructs)
        torch.testing.assert_close(total(made, x), total(plain, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_has_as_many_operators_as_it_says(form: str) -> None:
    conv = Conv(np.ones((4, 3, 3, 3)), None, (1, 1), ((1, 1),) * 2, (1, 1))
    made = lower(split(conv, 3), form, Reordering())
    convs = len(list(convs_of(made)))
    others = len(made) - 1 + sum(not isinstance(s, Conv) for chain in made for s in chain)
    geometry = Geometry(3, 4, (3, 3), (1, 1), (1, 1), 1, False, (8, 8), (8, 8))
    assert split_work(geometry, "dac", (3,), form).operators == convs + others


def test_shared_weights_stay_shared_in_every_form() -> None:
    conv = Conv(
        np.random.default_rng(0).standard_normal((4, 3, 3, 3)), None, (1, 1), ((1, 1),) * 2, (1, 1)
    )
    reorder = Reordering()
    both = DAC.branches([conv, conv], factors_of(conv, 2))
    for form in FORMS:
        first, second = (lower(branches, form, reorder) for branches in both)
        pairs = zip(convs_of(first), convs_of(second), strict=True)
        assert all(a.weight is b.weight for a, b in pairs)


def test_what_is_no_split_stays_as_it_is() -> None:
    dense = Conv(np.ones((4, 3, 3, 3)), None, (1, 1), ((1, 1),) * 2, (1, 1))
    for branches in (((dense,),), ((dense, dense),), ((dense,), (dense,))):
        assert multiplier_of(branches) == 1
        assert lower(branches, "sum", Reordering()) is branches
    plain = split(dense, 2)
    assert multiplier_of(plain) == 2
    assert lower(plain, "auto", Reordering()) is plain
