"""Every form is the same function: the judge is torch, on the neutral values themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacconv.decompositions import METHODS
from dacconv.decompositions.forms import FORMS, Spelled, lowered, multiplier_of, pieces
from dacconv.graph.types import Conv

DAC = METHODS["dac"]


def split(conv: Conv, rank: int) -> tuple[tuple[Conv, ...], ...]:
    return DAC.assemble(conv, DAC.factor(conv.weight, DAC.decompose(conv.weight), rank))


def run(conv: Conv, x: torch.Tensor) -> torch.Tensor:
    """A neutral conv as it says: copies, apart or not."""
    if conv.apart:
        return torch.cat([run(piece, x) for piece in pieces(conv, Spelled())], dim=1)
    if conv.copies > 1:
        way = (
            x.repeat_interleave(conv.copies, 1)
            if conv.interleaved
            else x.repeat(1, conv.copies, 1, 1)
        )
        x = way
    (top, bottom), (left, right) = conv.padding
    x = torch.nn.functional.pad(x, (left, right, top, bottom))
    bias = None if conv.bias is None else torch.from_numpy(conv.bias)
    return torch.nn.functional.conv2d(
        x, torch.from_numpy(conv.weight), bias, conv.stride, 0, conv.dilation, conv.groups
    )


def total(branches: tuple[tuple[Conv, ...], ...], x: torch.Tensor) -> torch.Tensor:
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
    made = lowered(plain, form, Spelled())
    torch.testing.assert_close(total(made, x), total(plain, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_has_as_many_operators_as_it_says(form: str) -> None:
    conv = Conv(np.ones((4, 3, 3, 3)), None, (1, 1), ((1, 1),) * 2, (1, 1))
    made = lowered(split(conv, 3), form, Spelled())
    convs = sum(len(pieces(c, Spelled())) if c.apart else 1 for chain in made for c in chain)
    others = len(made) - 1 + sum(1 for chain in made for c in chain if c.copies > 1)
    assert FORMS[form].operators(3) == convs + others


def test_shared_weights_stay_shared_in_every_form() -> None:
    conv = Conv(
        np.random.default_rng(0).standard_normal((4, 3, 3, 3)), None, (1, 1), ((1, 1),) * 2, (1, 1)
    )
    factors = DAC.factor(conv.weight, DAC.decompose(conv.weight), 2)
    spelled = Spelled()
    for form in FORMS:
        first, second = (lowered(DAC.assemble(conv, factors), form, spelled) for _ in range(2))
        for a, b in zip(first, second, strict=True):
            assert all(x.weight is y.weight for x, y in zip(a, b, strict=True))


def test_what_is_no_split_stays_as_it_is() -> None:
    dense = Conv(np.ones((4, 3, 3, 3)), None, (1, 1), ((1, 1),) * 2, (1, 1))
    for branches in (((dense,),), ((dense, dense),), ((dense,), (dense,))):
        assert multiplier_of(branches) == 1
        assert lowered(branches, "sum", Spelled()) is branches
    plain = split(dense, 2)
    assert multiplier_of(plain) == 2
    assert lowered(plain, "auto", Spelled()) is plain
