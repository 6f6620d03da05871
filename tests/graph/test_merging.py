from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conv_reference import assert_same, make_conv, run, sample, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from dacconv.graph import convs as kernels
from dacconv.graph import merging
from dacconv.graph.convs import Inexact
from dacconv.graph.types import Conv

ANY = settings(deadline=None, max_examples=60)


def centred(kernel, dilation):
    return tuple((d * (k - 1) // 2,) * 2 for k, d in zip(kernel, dilation, strict=True))


@st.composite
def branches(draw) -> list[Conv]:
    """Convs of one input that belong together, of all kernel sizes, groups and dilations."""
    groups = draw(st.sampled_from([1, 2, 4]))
    stride = draw(st.sampled_from([(1, 1), (2, 2), (1, 2)]))
    dilation = draw(st.sampled_from([(1, 1), (2, 1)]))
    result = []
    for _ in range(draw(st.integers(2, 4))):
        kernel = draw(st.sampled_from([(1, 1), (3, 3), (1, 3), (3, 1), (5, 3)]))
        own = draw(st.sampled_from([dilation, (1, 1)]))
        result.append(
            make_conv(
                draw(seeds), 8, 4, kernel, stride=stride, dilation=own,
                padding=centred(kernel, own), groups=draw(st.sampled_from([groups, 1])),
                bias=draw(st.booleans()),
            )
        )  # fmt: skip
    return result


@given(branches())
@ANY
def test_added_branches_are_one_conv(convs):
    x = sample(0, 2, 4, 9, 8)
    merged = merging.add_convs(convs)
    assert_same(run(merged, x), sum(run(conv, x) for conv in convs))
    assert (merged.bias is None) == all(conv.bias is None for conv in convs)


@given(branches())
@ANY
def test_joined_branches_are_one_conv(convs):
    x = sample(0, 2, 4, 9, 8)
    joined = np.concatenate([run(conv, x) for conv in convs], axis=1)
    assert_same(run(merging.concat_convs(convs), x), joined)


def test_repvgg_needs_no_larger_kernel_than_its_3x3():
    wide = make_conv(0, 6, 6, (3, 3), padding=((1, 1), (1, 1)), groups=2)
    merged = merging.add_convs([wide, make_conv(1, 6, 6, (1, 1), groups=2), kernels.identity(6, 2)])
    assert (merged.kernel, merged.padding, merged.groups) == ((3, 3), ((1, 1), (1, 1)), 2)


def test_a_dilated_branch_spreads_only_as_far_as_it_must():
    convs = [
        make_conv(0, 4, 4, (3, 3), dilation=(2, 2), padding=((2, 2), (2, 2))),
        make_conv(1, 4, 4, (1, 1)),
    ]
    merged = merging.add_convs(convs)
    assert (merged.kernel, merged.dilation) == ((3, 3), (2, 2))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_borders_of_one_kind_merge(mode):
    convs = [
        make_conv(0, 4, 4, (3, 3), padding=((1, 1), (1, 1)), pad_mode=mode),
        make_conv(1, 4, 4, (5, 3), padding=((2, 2), (1, 1)), pad_mode=mode),
        make_conv(2, 4, 4, (1, 1)),
        kernels.identity(4, 2),
    ]
    x = sample(0, 1, 4, 6, 7)
    assert_same(run(merging.add_convs(convs), x), sum(run(conv, x) for conv in convs))
    with pytest.raises(Inexact, match="borders"):
        merging.add_convs([convs[0], replace(convs[1], pad_mode="zeros")])


def test_what_does_not_line_up_is_refused():
    wide = make_conv(0, 4, 4, (3, 3), padding=((1, 1), (1, 1)))
    with pytest.raises(Inexact, match="strides"):
        merging.add_convs([wide, make_conv(1, 4, 4, (1, 1), stride=(2, 2))])
    with pytest.raises(Inexact, match="centred"):
        merging.add_convs([wide, make_conv(1, 4, 4, (3, 3))])
    with pytest.raises(Inexact, match="channels"):
        merging.add_convs([wide, make_conv(1, 1, 4, (1, 1))])


def test_sizes_that_only_the_input_makes_equal():
    """Stride 2: a 2x2 without padding makes as much of an even input as a padded 3x3."""
    convs = [
        make_conv(0, 4, 4, (3, 3), stride=(2, 2), padding=((1, 1), (1, 1))),
        make_conv(1, 4, 4, (2, 2), stride=(2, 2)),
    ]
    x = sample(0, 1, 4, 8, 6)
    merged = merging.add_convs(convs, (8, 6))
    assert merged.kernel == (3, 3)
    assert_same(run(merged, x), sum(run(conv, x) for conv in convs))
    for size in (None, (8, None), (7, 6)):
        with pytest.raises(Inexact, match="sizes"):
            merging.add_convs(convs, size)


def test_auto_pad_with_a_stride_merges_only_with_its_like():
    first = make_conv(0, 4, 4, (3, 3), stride=(2, 2), auto_pad="SAME_UPPER")
    second = make_conv(1, 4, 4, (3, 3), stride=(2, 2), auto_pad="SAME_UPPER")
    assert merging.add_convs([first, second]).auto_pad == "SAME_UPPER"
    with pytest.raises(Inexact, match="auto_pad"):
        merging.add_convs([first, make_conv(1, 4, 4, (1, 1), stride=(2, 2))])


def test_transposed_convs_merge_where_they_are_alike():
    convs = [
        make_conv(seed, 6, 4, (4, 4), stride=(2, 2), padding=((1, 1), (1, 1)), transposed=True)
        for seed in range(2)
    ]
    x = sample(0, 1, 4, 5, 5)
    assert_same(run(merging.add_convs(convs), x), run(convs[0], x) + run(convs[1], x))
    joined = np.concatenate([run(conv, x) for conv in convs], axis=1)
    assert_same(run(merging.concat_convs(convs), x), joined)
    other = make_conv(2, 6, 4, (2, 2), stride=(2, 2), transposed=True)
    with pytest.raises(Inexact, match="transposed convs of different"):
        merging.add_convs([convs[0], other])
    with pytest.raises(Inexact, match="plain"):
        merging.add_convs([other, replace(other, transposed=False)])


@st.composite
def chains(draw) -> tuple[Conv, Conv]:
    def conv(channels: int, out: int) -> Conv:
        kernel = draw(st.sampled_from([(1, 1), (1, 1), (3, 3), (1, 3), (2, 1)]))
        stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2)]))
        dilation = draw(st.sampled_from([(1, 1), (2, 2)]))
        padding = draw(st.sampled_from([((0, 0), (0, 0)), ((1, 1), (1, 1)), ((0, 0), (1, 2))]))
        return make_conv(
            draw(seeds), out, channels, kernel, stride=stride, padding=padding,
            dilation=dilation, groups=draw(st.sampled_from([1, 2, 4])), bias=draw(st.booleans()),
            pad_mode=draw(st.sampled_from(["zeros", "zeros", "replicate", "circular"])),
        )  # fmt: skip

    return conv(4, 8), conv(8, 4)


@given(chains())
@settings(deadline=None, max_examples=150)
def test_a_chain_is_one_conv_or_is_refused(chain):
    first, second = chain
    x = sample(0, 2, 4, 17, 18)
    try:
        merged = merging.compose(first, second)
    except Inexact:
        # a refusal needs a border: without padding every chain is one conv
        assert kernels.is_padded(second)
        return
    assert_same(run(merged, x), run(second, run(first, x)))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_1x1_then_3x3_and_the_border(groups, stride):
    first = make_conv(0, 8, 4, (1, 1), groups=groups, stride=(stride, stride))
    second = make_conv(1, 4, 8, (3, 3), groups=groups, padding=((1, 1), (1, 1)))
    with pytest.raises(Inexact, match="bias of the first"):
        merging.compose(first, second)
    x = sample(0, 1, 4, 9, 8)
    unbiased = replace(first, bias=None)
    assert_same(run(merging.compose(unbiased, second), x), run(second, run(unbiased, x)))
    inner = replace(second, padding=((0, 0), (0, 0)))
    assert_same(run(merging.compose(first, inner), x), run(inner, run(first, x)))
    bordered = kernels.pad_output(replace(first, stride=(1, 1)), ((1, 1), (1, 1)), first.bias)
    merged = merging.compose(bordered, inner)
    assert merged.padding == ((1, 1), (1, 1))
    assert_same(run(merged, x), run(inner, run(bordered, x)))


def test_3x3_then_1x1_keeps_its_padding():
    first = make_conv(0, 8, 4, (3, 3), padding=((1, 0), (2, 1)), stride=(2, 1))
    second = make_conv(1, 6, 8, (1, 1), stride=(1, 2))
    x = sample(0, 1, 4, 9, 8)
    merged = merging.compose(first, second)
    assert (merged.kernel, merged.padding, merged.stride) == ((3, 3), first.padding, (2, 2))
    assert_same(run(merged, x), run(second, run(first, x)))


def test_reflection_commutes_with_a_biased_1x1():
    first = make_conv(0, 8, 4, (1, 1))
    second = make_conv(1, 6, 8, (3, 3), padding=((1, 1), (1, 1)), pad_mode="reflect")
    x = sample(0, 1, 4, 9, 8)
    assert_same(run(merging.compose(first, second), x), run(second, run(first, x)))
    with pytest.raises(Inexact, match="reflect"):
        merging.compose(replace(first, stride=(2, 2)), second)


def test_transposed_convs_merge_with_pointwise_neighbours():
    up = make_conv(
        0, 6, 4, (3, 3), stride=(2, 2), padding=((1, 1), (0, 1)), groups=2, transposed=True,
        output_padding=(1, 0),
    )  # fmt: skip
    x = sample(0, 1, 4, 5, 4)
    after = make_conv(1, 8, 6, (1, 1), groups=2)
    assert_same(run(merging.compose(up, after), x), run(after, run(up, x)))
    before = make_conv(1, 4, 4, (1, 1), bias=False)
    assert_same(run(merging.compose(before, up), x), run(up, run(before, x)))
    with pytest.raises(Inexact, match="unevenly"):
        merging.compose(make_conv(1, 4, 4, (1, 1)), up)
    with pytest.raises(Inexact, match="1x1 conv only"):
        merging.compose(up, make_conv(1, 6, 6, (3, 3)))


def test_linear_layers_compose():
    first, second = make_conv(0, 8, 4, ()), make_conv(1, 3, 8, ())
    x = sample(0, 2, 5, 4)
    assert_same(run(merging.compose(first, second), x), run(second, run(first, x)))
    both = [first, make_conv(2, 8, 4, ())]
    assert_same(run(merging.add_convs(both), x), run(both[0], x) + run(both[1], x))
