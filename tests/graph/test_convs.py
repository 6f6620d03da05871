from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conv_reference import (
    apply,
    assert_same,
    make_affine,
    make_conv,
    run,
    sample,
    seeds,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dacconv.graph import convs as kernels
from dacconv.graph.convs import Inexact
from dacconv.graph.types import Affine, Conv

GROUPS = st.sampled_from([1, 2, 4])


@st.composite
def convs(draw, channels: int = 4, out: int | None = None, axes: int = 2) -> Conv:
    def per_axis(low: int, high: int):
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    return make_conv(
        draw(seeds),
        out or draw(st.sampled_from([4, 8])),
        channels,
        per_axis(1, 3),
        stride=per_axis(1, 2),
        dilation=per_axis(1, 2),
        padding=tuple(zip(per_axis(0, 2), per_axis(0, 2), strict=True)),
        groups=draw(GROUPS),
        bias=draw(st.booleans()),
    )


@given(convs(), seeds)
@settings(deadline=None)
def test_an_affine_folds_into_the_conv_before_it(conv, seed):
    affine = make_affine(seed, conv.out_channels)
    x = sample(seed, 2, 4, 7, 8)
    assert_same(run(kernels.fold_affine(conv, affine), x), apply(affine, run(conv, x)))


@given(convs(), seeds, st.booleans(), st.sampled_from(["zeros", "reflect", "circular"]))
@settings(deadline=None)
def test_an_affine_folds_into_the_conv_after_it_or_is_refused(conv, seed, shift, mode):
    conv = replace(conv, pad_mode=mode)
    affine = make_affine(seed, 4, shift=shift)
    x = sample(seed, 2, 4, 7, 8)
    if mode == "zeros" and shift and any(any(pad) for pad in conv.padding):
        with pytest.raises(Inexact, match="border"):
            kernels.absorb_affine(affine, conv)
    else:
        expected = run(conv, apply(affine, x))
        assert_same(run(kernels.absorb_affine(affine, conv), x), expected)


def test_scalars_fold():
    conv = make_conv(0, 4, 4, (3, 3), groups=2)
    half = Affine(np.array(0.5), np.array(-2.0))
    x = sample(1, 1, 4, 5, 5)
    assert_same(run(kernels.fold_affine(conv, half), x), 0.5 * run(conv, x) - 2)
    assert_same(run(kernels.absorb_affine(half, conv), x), run(conv, 0.5 * x - 2))


def test_a_scale_alone_invents_no_bias():
    conv = make_conv(0, 4, 4, (3, 3), bias=False)
    assert kernels.fold_affine(conv, make_affine(0, 4, shift=False)).bias is None
    assert kernels.absorb_affine(make_affine(0, 4, shift=False), conv).bias is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_arithmetic_is_in_float64_and_leaves_the_original_alone(dtype):
    conv = make_conv(0, 4, 4, (3, 3))
    conv = replace(conv, weight=conv.weight.astype(dtype), bias=conv.bias.astype(dtype))
    before = conv.weight.copy()
    folded = kernels.fold_affine(conv, make_affine(1, 4))
    assert folded.weight.dtype == np.float64
    assert folded.bias is not None
    assert folded.bias.dtype == np.float64
    assert (conv.weight == before).all()


def test_another_number_of_channels_is_refused():
    conv = make_conv(0, 4, 6, (3, 3))
    with pytest.raises(Inexact, match="6 channels where the conv has 4"):
        kernels.fold_affine(conv, make_affine(0, 6))
    with pytest.raises(Inexact, match="4 channels where the conv has 6"):
        kernels.absorb_affine(make_affine(0, 4), conv)


@given(seeds, GROUPS, st.booleans(), st.integers(0, 1))
@settings(deadline=None, max_examples=30)
def test_an_affine_folds_into_a_transposed_conv(seed, groups, bias, extra):
    conv = make_conv(
        seed, 8, 4, (3, 2), stride=(2, 2), padding=((1, 0), (0, 1)), groups=groups, bias=bias,
        transposed=True, output_padding=(extra, 0),
    )  # fmt: skip
    x = sample(seed, 2, 4, 5, 6)
    after, before = make_affine(seed, 8), make_affine(seed, 4, shift=False)
    assert_same(run(kernels.fold_affine(conv, after), x), apply(after, run(conv, x)))
    assert_same(run(kernels.absorb_affine(before, conv), x), run(conv, apply(before, x)))
    with pytest.raises(Inexact, match="unevenly"):
        kernels.absorb_affine(make_affine(seed, 4), conv)


def test_the_reference_agrees_with_torch_on_transposed_convs():
    conv = make_conv(
        3, 4, 6, (3, 3), stride=(2, 2), padding=((1, 1), (1, 1)), groups=2,
        transposed=True, output_padding=(1, 1),
    )  # fmt: skip
    x = sample(3, 1, 6, 4, 5)
    module = torch.nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1, groups=2).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor(kernels.swap_channels(conv.weight, 2).copy()))
        module.bias.copy_(torch.tensor(conv.bias))
        assert_same(run(conv, x), module(torch.tensor(x)).numpy())


def test_swapping_channels_twice_is_nothing():
    weight = sample(0, 6, 4, 3, 3)
    assert kernels.swap_channels(weight, 2).shape == (8, 3, 3, 3)
    assert (kernels.swap_channels(kernels.swap_channels(weight, 2), 2) == weight).all()


def test_an_affine_folds_into_a_linear_layer():
    layer = make_conv(0, 5, 7, ())
    x = sample(0, 2, 3, 7)
    after, before = make_affine(1, 5), make_affine(1, 7)
    assert_same(run(kernels.fold_affine(layer, after), x), apply(after, run(layer, x), -1))
    assert_same(run(kernels.absorb_affine(before, layer), x), run(layer, apply(before, x, -1)))


@given(convs(), st.tuples(*[st.integers(0, 2)] * 4))
@settings(deadline=None)
def test_zero_padding_folds_into_the_conv(conv, sides):
    pads = (sides[:2], sides[2:])
    x = sample(0, 1, 4, 7, 8)
    padded = np.pad(x, ((0, 0), (0, 0), *pads))
    assert_same(run(kernels.pad_input(pads, conv), x), run(conv, padded))


def test_padding_that_is_not_zeros_is_refused():
    conv = make_conv(0, 4, 4, (3, 3), padding=((1, 1), (1, 1)), pad_mode="reflect")
    with pytest.raises(Inexact, match="reflect"):
        kernels.pad_input(((1, 1), (1, 1)), conv)
    with pytest.raises(Inexact, match="crops"):
        kernels.pad_input(((-1, 0), (0, 0)), make_conv(0, 4, 4, (3, 3)))


@given(seeds, GROUPS, st.booleans())
@settings(deadline=None, max_examples=30)
def test_a_border_of_the_bias_is_padding_before_a_1x1_conv(seed, groups, bias):
    conv = make_conv(seed, 8, 4, (1, 1), groups=groups, bias=bias)
    x = sample(seed, 1, 4, 5, 6)
    pads = ((1, 2), (0, 1))
    border = kernels.bias_of(conv)
    expected = np.empty((1, 8, 8, 7))
    expected[:] = border.reshape(1, -1, 1, 1)
    expected[:, :, 1:6, :6] = run(conv, x)
    assert_same(run(kernels.pad_output(conv, pads, border), x), expected)
    with pytest.raises(Inexact, match="something other than the bias"):
        kernels.pad_output(conv, pads, border + 1)


def test_a_border_after_a_wide_kernel_is_refused():
    conv = make_conv(0, 4, 4, (3, 1), bias=False)
    with pytest.raises(Inexact, match="wider"):
        kernels.pad_output(conv, ((1, 1), (0, 0)), 0.0)
    x = sample(0, 1, 4, 5, 6)  # along the axis where it is 1 wide it is exact
    padded = np.pad(run(conv, x), ((0, 0), (0, 0), (0, 0), (1, 1)))
    assert_same(run(kernels.pad_output(conv, ((0, 0), (1, 1)), 0.0), x), padded)


@given(convs(channels=8, out=8), st.sampled_from([1, 2, 4]))
@settings(deadline=None)
def test_fewer_groups_compute_the_same(conv, groups):
    if conv.groups % groups:
        return
    x = sample(0, 1, 8, 7, 7)
    assert_same(run(kernels.regroup(conv, groups), x), run(conv, x))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_identity_and_scaling_are_convs(axes):
    x = sample(0, 2, 5, *[4] * axes)
    assert_same(run(kernels.identity(5, axes), x), x)
    affine = make_affine(0, 5)
    assert_same(run(kernels.scaling(affine, 5, axes), x), apply(affine, x))


@given(st.tuples(*[st.integers(1, 3)] * 2), st.tuples(*[st.integers(1, 3)] * 2), st.booleans())
@settings(deadline=None, max_examples=30)
def test_average_pooling_is_a_conv(kernel, stride, include):
    padding = tuple(k // 2 for k in kernel)
    x = sample(0, 2, 3, 7, 8)
    pool = torch.nn.AvgPool2d(kernel, stride, padding, count_include_pad=include)
    pads = tuple((p, p) for p in padding)
    if any(padding) and not include:
        with pytest.raises(Inexact, match="does not count its padding"):
            kernels.average_pool(3, kernel, stride, pads, count_include_pad=False)
        return
    conv = kernels.average_pool(3, kernel, stride, pads, count_include_pad=include)
    assert_same(run(conv, x), pool(torch.tensor(x)).numpy())


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_auto_pad_is_spelled_out_where_it_does_not_depend_on_the_size(mode):
    conv = make_conv(0, 2, 2, (4, 3), dilation=(1, 2), auto_pad=mode)
    explicit = kernels.explicit_padding(conv)
    assert explicit.auto_pad is None
    assert explicit.padding == (((1, 2) if mode == "SAME_UPPER" else (2, 1)), (2, 2))
    assert run(conv, sample(0, 1, 2, 9, 9)).shape == (1, 2, 9, 9)
    with pytest.raises(Inexact, match="depends on the input's size"):
        kernels.explicit_padding(replace(conv, stride=(2, 1)))
    pointwise = make_conv(0, 2, 2, (1, 1), stride=(2, 2), auto_pad=mode)
    assert kernels.explicit_padding(pointwise).padding == ((0, 0), (0, 0))


def test_work_counts_the_strides():
    conv = make_conv(0, 8, 4, (3, 3), stride=(2, 2), groups=2)
    assert kernels.work(conv) == 8 * 2 * 9 / 4
    assert kernels.density(conv) == 1 / 4
    up = replace(conv, transposed=True)
    assert kernels.work(up) == 8 * 2 * 9
    assert kernels.density(up) == 4
