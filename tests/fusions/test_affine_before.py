from __future__ import annotations

import numpy as np
import pytest
from conv_reference import make_affine, make_conv
from toy import Toy, assert_fused

from dacconv.graph.types import Affine

PADDED = ((1, 1), (1, 1))


def net_of(affine: Affine, conv, size=(6, 6)) -> Toy:
    net = Toy()
    value = net.bn(net.input(2, 4, *size), affine, name="bn")
    net.outputs = (net.relu(net.conv_node(value, conv)),)
    return net


@pytest.mark.parametrize(
    "conv",
    [
        make_conv(0, 6, 4, (3, 3), groups=2),
        make_conv(0, 6, 4, (1, 1), stride=(2, 2)),
        make_conv(0, 6, 4, (3, 3), padding=PADDED, pad_mode="replicate"),
        make_conv(0, 6, 4, (1, 1), auto_pad="SAME_LOWER"),
    ],
    ids=["grouped", "strided", "replicate", "same 1x1"],
)
def test_batch_norm_goes_into_the_conv_after_it(conv):
    made, fused, refusals = assert_fused(net_of(make_affine(0, 4), conv))
    assert [node.kind for node in made.nodes] == ["merged", "Relu"]
    assert not refusals
    assert len(fused) == 1


def test_a_shift_that_the_border_would_miss_is_refused():
    conv = make_conv(0, 6, 4, (3, 3), padding=PADDED)
    _, fused, refusals = assert_fused(net_of(make_affine(0, 4), conv))
    assert not fused
    assert "border" in refusals["bn"]


def test_a_scale_goes_into_a_padded_conv_and_so_do_shifts_that_cancel():
    conv = make_conv(0, 6, 4, (3, 3), padding=PADDED)
    made, _, _ = assert_fused(net_of(make_affine(0, 4, shift=False), conv))
    assert len(made.nodes) == 2
    net = Toy()
    shift = np.arange(4.0)
    value = net.bn(net.input(1, 4, 6, 6), Affine(np.ones(4), shift), kind="Add")
    value = net.bn(value, Affine(np.full(4, 2.0), -2 * shift), kind="BatchNorm")
    net.outputs = (net.conv_node(value, conv),)
    assert len(assert_fused(net)[0].nodes) == 1


def test_a_mere_scale_is_not_lost_to_a_shift_before_it():
    net = Toy()
    value = net.bn(net.input(1, 4, 6, 6), make_affine(0, 4), name="bn")
    value = net.bn(value, Affine(np.array(0.5), np.array(0.0)), kind="Mul")
    net.outputs = (net.conv_node(value, make_conv(0, 6, 4, (3, 3), padding=PADDED)),)
    made, fused, refusals = assert_fused(net)
    assert [node.kind for node in made.nodes] == ["BatchNorm", "merged"]
    assert "border" in refusals["bn"]
    assert len(fused) == 1


def test_padding_after_the_batch_norm_is_not_its_border():
    net = Toy()
    value = net.bn(net.input(1, 4, 6, 6), make_affine(0, 4), name="bn")
    value = net.pad(value, ((0, 0), (0, 0), (1, 1), (1, 1)))
    net.outputs = (net.conv_node(value, make_conv(0, 6, 4, (3, 3))),)
    _, fused, refusals = assert_fused(net)
    assert len(fused) == 1  # the padding goes into the conv, the BatchNorm stays
    assert "border" in refusals["bn"]


def test_a_value_used_elsewhere():
    net = Toy()
    value = net.bn(net.input(1, 4, 6, 6), make_affine(0, 4), name="bn")
    net.outputs = (net.conv_node(value, make_conv(0, 4, 4, (1, 1))), net.relu(value))
    _, fused, refusals = assert_fused(net)
    assert not fused
    assert "also read by relu2" in refusals["bn"]


def test_before_a_transpose():
    net = Toy()
    value = net.bn(net.input(1, 6, 5, 4), make_affine(0, 4), axis=3)
    value = net.transpose(value, (0, 3, 1, 2))
    net.outputs = (net.conv_node(value, make_conv(0, 6, 4, (1, 1))),)
    made, _, _ = assert_fused(net)
    assert [node.kind for node in made.nodes] == ["Transpose", "merged"]


def test_before_a_linear_layer():
    net = Toy()
    value = net.bn(net.input(2, 4), make_affine(0, 4))
    net.outputs = (net.conv_node(value, make_conv(0, 6, 4, ())),)
    assert len(assert_fused(net)[0].nodes) == 1


def test_between_two_convs_it_goes_into_the_first():
    net = Toy()
    value = net.conv_node(net.input(1, 4, 6, 6), make_conv(0, 4, 4, (3, 3), bias=False))
    value = net.bn(value, make_affine(0, 4))
    net.outputs = (net.conv_node(value, make_conv(1, 4, 4, (3, 3), padding=PADDED)),)
    _, fused, refusals = assert_fused(net)
    assert fused[0].absorbed == ("conv0", "batchnorm1")
    assert "not merged with conv0" in refusals["conv2"]
