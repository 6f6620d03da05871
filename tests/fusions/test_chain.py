from __future__ import annotations

import pytest
from conv_reference import make_affine, make_conv
from toy import Toy, assert_fused

PADDED = ((1, 1), (1, 1))


def chained(*convs, size=(7, 8)) -> Toy:
    net = Toy()
    value = net.input(1, convs[0].in_channels, *size)
    for conv in convs:
        value = net.conv_node(value, conv)
    net.outputs = (value,)
    return net


@pytest.mark.parametrize(
    "convs",
    [
        (make_conv(0, 8, 4, (1, 1), bias=False), make_conv(1, 4, 8, (3, 3), padding=PADDED)),
        (make_conv(0, 8, 4, (1, 1)), make_conv(1, 4, 8, (3, 3))),
        (make_conv(0, 8, 4, (3, 3), padding=PADDED), make_conv(1, 4, 8, (1, 1))),
        (
            make_conv(0, 8, 4, (1, 1), groups=2),
            make_conv(1, 4, 8, (3, 3), groups=2),
            make_conv(2, 4, 4, (1, 1), groups=2),
        ),
        (make_conv(0, 8, 4, (1, 1)), make_conv(1, 2, 8, (4, 4), stride=(2, 2), transposed=True)),
    ],
    ids=["unbiased", "unpadded", "3x3 first", "grouped three", "biased before transposed"],
)
def test_a_chain_is_one_conv_where_the_border_allows_it(convs):
    made, _, refusals = assert_fused(chained(*convs))
    biased = convs[0].bias is not None and convs[1].transposed
    assert len(made.nodes) == (2 if biased else 1)
    assert bool(refusals) == biased


def test_a_bias_before_a_padded_conv_is_refused_with_the_reason():
    _, fused, refusals = assert_fused(
        chained(make_conv(0, 8, 4, (1, 1)), make_conv(1, 4, 8, (3, 3), padding=PADDED))
    )
    assert not fused
    assert "pads with zeros where the bias of the first" in refusals["conv1"]


@pytest.mark.parametrize(
    "convs",
    [
        (make_conv(0, 8, 8, (3, 3), groups=8), make_conv(1, 8, 8, (1, 1))),
        (make_conv(0, 2, 8, (1, 1)), make_conv(1, 8, 2, (1, 1))),
    ],
    ids=["depthwise and pointwise", "bottleneck"],
)
def test_what_would_cost_more_is_left_alone(convs):
    _, fused, refusals = assert_fused(chained(*convs))
    assert not fused
    assert "cost more" in refusals["conv1"]


def test_a_low_rank_linear_layer_is_not_multiplied_out():
    net = Toy()
    value = net.conv_node(net.input(2, 16), make_conv(0, 2, 16, ()))
    net.outputs = (net.conv_node(value, make_conv(1, 16, 2, ())),)
    assert "cost more" in assert_fused(net)[2]["linear1"]


def test_linear_layers_with_dropout_between():
    net = Toy()
    value = net.identity(net.conv_node(net.input(2, 4), make_conv(0, 16, 4, ())))
    net.outputs = (net.conv_node(value, make_conv(1, 4, 16, ())),)
    assert len(assert_fused(net)[0].nodes) == 1


def test_a_value_used_elsewhere_and_a_relu_between():
    net = Toy()
    first = net.conv_node(net.input(1, 4, 6, 6), make_conv(0, 8, 4, (1, 1)))
    second = net.conv_node(first, make_conv(1, 4, 8, (3, 3)))
    net.outputs = (second, net.relu(first))
    assert "also read by relu2" in assert_fused(net)[2]["conv1"]
    net = Toy()
    first = net.relu(net.conv_node(net.input(1, 4, 6, 6), make_conv(0, 8, 4, (1, 1))))
    net.outputs = (net.conv_node(first, make_conv(1, 4, 8, (3, 3))),)
    _, fused, refusals = assert_fused(net)
    assert not fused
    assert not refusals


def test_a_pool_that_only_strides_goes_into_the_conv():
    net = Toy()
    value = net.pool(net.input(1, 4, 6, 6), 1, stride=2)
    net.outputs = (net.conv_node(value, make_conv(0, 4, 4, (1, 1))),)
    assert len(assert_fused(net)[0].nodes) == 1


def test_a_pool_before_a_conv_stays_where_the_conv_would_cost_more():
    net = Toy()
    value = net.pool(net.input(1, 4, 6, 6), 2, stride=2)
    net.outputs = (net.conv_node(value, make_conv(0, 4, 4, (1, 1)), name="shortcut"),)
    assert "cost more" in assert_fused(net)[2]["shortcut"]


def test_convs_and_batch_norms_down_to_one():
    net = Toy()
    value = net.conv_node(net.input(1, 4, 9, 9), make_conv(0, 8, 4, (1, 1), bias=False))
    value = net.bn(value, make_affine(0, 8))
    value = net.bn(net.conv_node(value, make_conv(1, 8, 8, (3, 3))), make_affine(1, 8))
    value = net.bn(net.conv_node(value, make_conv(2, 4, 8, (1, 1))), make_affine(2, 4))
    net.outputs = (value,)
    made, _, _ = assert_fused(net)
    assert len(made.nodes) == 1
