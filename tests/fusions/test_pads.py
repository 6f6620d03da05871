from __future__ import annotations

import numpy as np
import pytest
from conv_reference import make_affine, make_conv
from toy import Toy, assert_fused

SPATIAL = ((0, 0), (0, 0), (1, 2), (0, 1))


def test_zero_padding_goes_into_the_conv():
    net = Toy()
    value = net.pad(net.input(1, 4, 6, 6), SPATIAL)
    net.outputs = (net.conv_node(value, make_conv(0, 4, 4, (3, 3), stride=(2, 2))),)
    made, _, _ = assert_fused(net)
    assert len(made.nodes) == 1


def test_zero_padding_before_a_transpose():
    net = Toy()
    value = net.pad(net.input(1, 6, 6, 4), ((0, 0), (1, 2), (0, 1), (0, 0)))
    value = net.transpose(value, (0, 3, 1, 2))
    net.outputs = (net.conv_node(value, make_conv(0, 4, 4, (3, 3))),)
    made, _, _ = assert_fused(net)
    assert [node.kind for node in made.nodes] == ["Transpose", "merged"]


def test_padding_of_channels_or_with_another_value_stays():
    for pads, value in [(((0, 0), (1, 1), (1, 1), (1, 1)), 0.0), (SPATIAL, 1.0)]:
        net = Toy()
        padded = net.pad(net.input(1, 4, 6, 6), pads, value)
        channels = 4 + sum(pads[1])
        net.outputs = (net.conv_node(padded, make_conv(0, 4, channels, (3, 3))),)
        _, fused, refusals = assert_fused(net)
        assert not fused
        assert ("pad0" in refusals) == (value == 0.0)


def bordered(border, **options) -> Toy:
    """1x1 -> BatchNorm -> padding -> 3x3, as Diverse Branch Block has it."""
    net = Toy()
    value = net.conv_node(net.input(1, 4, 6, 6), make_conv(0, 4, 4, (1, 1), bias=False))
    affine = make_affine(1, 4)
    value = net.bn(value, affine)
    value = net.pad(value, ((0, 0), (0, 0), (1, 1), (1, 1)), border(affine.shift))
    net.outputs = (net.conv_node(value, make_conv(2, 8, 4, (3, 3), **options)),)
    return net


def test_a_border_of_the_bias_makes_1x1_and_3x3_one_conv():
    made, _, refusals = assert_fused(bordered(lambda shift: shift))
    assert len(made.nodes) == 1
    assert not refusals


def test_a_border_that_float32_computed_is_the_bias_too():
    net = bordered(lambda shift: shift.astype(np.float32) * np.float32(1.0000001))
    made, _, _ = assert_fused(net, tolerance=1e-6)
    assert len(made.nodes) == 1


def test_another_border_is_refused():
    _, fused, refusals = assert_fused(bordered(lambda shift: shift + 1))
    assert fused[0].absorbed == ("conv0", "batchnorm1")
    assert "something other than the bias" in refusals["pad2"]


def test_zeros_around_a_biased_1x1_go_into_the_3x3_which_then_stays():
    made, fused, refusals = assert_fused(bordered(lambda shift: 0.0))
    assert made.count() == 2
    assert [each.absorbed for each in fused] == [("conv0", "batchnorm1"), ("pad2", "conv3")]
    assert "bias of the first" in refusals["conv3"]


def test_padding_before_an_average_pool_goes_into_the_1x1_before_it():
    net = Toy()
    value = net.input(1, 4, 6, 6)
    wide = net.conv_node(value, make_conv(5, 4, 4, (3, 3), padding=((1, 1), (1, 1))))
    affine = make_affine(1, 4)
    inner = net.bn(net.conv_node(value, make_conv(0, 4, 4, (1, 1), bias=False)), affine)
    inner = net.pad(inner, ((0, 0), (0, 0), (1, 1), (1, 1)), affine.shift)
    net.outputs = (net.add(wide, net.pool(inner, 3)),)
    made, _, _ = assert_fused(net)
    assert len(made.nodes) == 1


def overwritten(*fills, size=True) -> Toy:
    """1x1 -> BatchNorm -> zero padding -> assignments to the border -> 3x3."""
    net = Toy(known_shapes=size)
    value = net.conv_node(net.input(1, 4, 6, 6), make_conv(0, 4, 4, (1, 1), bias=False))
    affine = make_affine(1, 4)
    value = net.pad(net.bn(value, affine), ((0, 0), (0, 0), (1, 1), (1, 1)))
    for axis, begin, end in fills:
        value = net.fill(value, axis, begin, end, affine.shift)
    net.outputs = (net.conv_node(value, make_conv(2, 8, 4, (3, 3))),)
    return net


BORDER = ((2, 0, 1), (2, -1, None), (3, 0, 1), (3, -1, None))


@pytest.mark.parametrize("size", [True, False])
def test_a_border_that_is_overwritten_with_the_bias(size):
    made, fused, refusals = assert_fused(overwritten(*BORDER, size=size))
    assert len(made.nodes) == 1
    assert not refusals
    assert "4 SetItem" in fused[0].what


@pytest.mark.parametrize(
    "fills", [BORDER[:3], (*BORDER[:3], (3, -2, None)), (*BORDER, (2, 3, 4)), BORDER[:1] * 4]
)
def test_a_border_that_is_overwritten_in_part_or_too_far(fills):
    made, _, _ = assert_fused(overwritten(*fills))
    assert made.count() == 2
