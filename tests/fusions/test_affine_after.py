from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from conv_reference import make_affine, make_conv
from toy import Toy, assert_fused

from dacconv.fusions import fuse
from dacconv.graph.types import Affine

LAYERS = {
    "conv": (make_conv(0, 6, 4, (3, 3), padding=((1, 1), (1, 1)), groups=2, bias=False), 9, 9),
    "conv1d": (make_conv(0, 6, 4, (3,), padding=((1, 1),)), 9),
    "conv3d": (make_conv(0, 6, 4, (2, 2, 2), stride=(2, 1, 1)), 5, 5, 5),
    "reflect": (make_conv(0, 6, 4, (3, 3), padding=((1, 1), (1, 1)), pad_mode="reflect"), 9, 9),
    "same": (make_conv(0, 6, 4, (3, 3), auto_pad="SAME_UPPER"), 9, 9),
    "transposed": (make_conv(0, 6, 4, (3, 3), stride=(2, 2), transposed=True), 5, 5),
    "linear": (make_conv(0, 6, 4, ()),),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_batch_norm_goes_into_the_layer_before_it(kind):
    conv, *size = LAYERS[kind]
    net = Toy()
    value = net.conv_node(net.input(2, 4, *size), conv)
    net.outputs = (net.bn(value, make_affine(1, 6)),)
    made, fused, refusals = assert_fused(net)
    assert len(made.nodes) == 1
    assert not refusals
    assert fused[0].absorbed == tuple(node.name for node in net.nodes)
    assert fused[0].name == net.nodes[0].name
    assert "1 BatchNorm" in fused[0].what


def test_loose_arithmetic_goes_too_and_dropout_between():
    net = Toy()
    value = net.conv_node(net.input(1, 4, 6, 6), make_conv(0, 4, 4, (3, 3)))
    value = net.bn(value, Affine(np.ones(4), np.arange(4.0)), kind="Sub")
    value = net.identity(value)
    value = net.bn(value, Affine(np.arange(1.0, 5.0), np.zeros(4)), kind="Mul")
    value = net.bn(value, Affine(np.array(1.0), np.array(0.5)), kind="Add")
    net.outputs = (net.relu(value),)
    made, _, refusals = assert_fused(net)
    assert [node.kind for node in made.nodes] == ["merged", "Relu"]
    assert not refusals


def test_behind_a_transpose():
    """What exports from Keras do: the conv in NCHW, the arithmetic in NHWC."""
    net = Toy()
    value = net.conv_node(net.input(1, 4, 6, 5), make_conv(0, 3, 4, (3, 3)))
    value = net.identity(net.transpose(value, (0, 2, 3, 1)))
    value = net.bn(value, make_affine(0, 3), axis=3, kind="Mul")
    value = net.bn(net.identity(value), make_affine(1, 3), axis=-1, kind="Add")
    value = net.relu(value)
    net.outputs = (net.add(value, net.transpose(value, (0, 1, 2, 3))),)
    made, fused, refusals = assert_fused(net)
    kinds = [node.kind for node in made.nodes]
    assert kinds == ["merged", "Transpose", "Dropout", "Dropout", "Relu", "Transpose", "Add"]
    assert not refusals
    assert len(fused) == 1


def test_an_output_behind_a_transpose_keeps_its_name():
    net = Toy()
    value = net.conv_node(net.input(1, 4, 6, 5), make_conv(0, 3, 4, (3, 3)))
    value = net.transpose(value, (0, 2, 3, 1))
    net.outputs = (net.bn(value, make_affine(0, 3), axis=3),)
    _, fused, refusals = assert_fused(net)
    assert not fused
    assert "output of the model" in refusals["batchnorm2"]


def chain(net: Toy, **conv_options) -> tuple[str, str]:
    before = net.conv_node(net.input(1, 4, 6, 6), make_conv(0, 4, 4, (3, 3)), **conv_options)
    return before, net.bn(before, make_affine(1, 4), name="bn")


def refused(net: Toy) -> str:
    _, fused, refusals = assert_fused(net)
    assert not fused
    return refusals["bn"]


def test_a_value_used_elsewhere():
    net = Toy()
    before, after = chain(net)
    net.outputs = (net.add(net.relu(before), after),)
    assert "is also read by relu2" in refused(net)


def test_a_graph_output():
    net = Toy()
    before, after = chain(net)
    net.outputs = (before, after)
    assert "is an output of the model" in refused(net)


def test_a_shared_weight():
    net = Toy()
    _, after = chain(net, weight="shared")
    other = net.conv_node("x", make_conv(0, 4, 4, (3, 3)), weight="shared", name="other")
    net.outputs = (net.add(after, net.relu(other)),)
    assert "shared with other" in refused(net)


def test_a_batch_norm_in_training_mode_is_left_unread():
    net = Toy()
    _, after = chain(net)
    net.nodes[-1] = replace(net.nodes[-1], skip="BatchNormalization in training mode")
    net.outputs = (after,)
    net.affine = None
    made, fused, refusals = fuse(net)
    assert made is net
    assert not fused
    assert refusals[0].reason == "BatchNormalization in training mode"


def test_a_conv_that_must_not_be_touched():
    net = Toy()
    _, after = chain(net)
    net.nodes[0] = replace(net.nodes[0], skip="its weight is computed at runtime")
    net.outputs = (after,)
    assert "computed at runtime" in refused(net)


def test_relu_between():
    net = Toy()
    value = net.relu(net.conv_node(net.input(1, 4, 6, 6), make_conv(0, 4, 4, (3, 3))))
    net.outputs = (net.relu(net.bn(value, make_affine(0, 4), name="bn")),)
    reason = refused(net)
    assert "no conv next to it" in reason
    assert "Relu" in reason


def test_another_axis():
    net = Toy()
    value = net.conv_node(net.input(1, 4, 6, 6), make_conv(0, 4, 4, (3, 3)))
    net.outputs = (net.bn(value, make_affine(0, 4), axis=3, name="bn"),)
    assert "axis 3" in refused(net)


def test_batch_norm_over_the_positions_of_a_linear_layer():
    """(batch, length, channels) -> linear -> BatchNorm1d normalises axis 1, not the last."""
    net = Toy()
    value = net.conv_node(net.input(2, 6, 4), make_conv(0, 6, 4, ()))
    net.outputs = (net.bn(value, make_affine(1, 6), axis=1, name="bn"),)
    assert "axis 1" in refused(net)


def test_a_scalar_constant_far_from_any_conv_is_no_refusal():
    net = Toy()
    value = net.bn(net.input(1, 4, 6, 6), Affine(np.array(1 / 255), np.array(0.0)), kind="Div")
    net.outputs = (net.relu(value),)
    assert assert_fused(net)[2] == {}


@pytest.mark.parametrize(("shape", "merged"), [((2, 4), True), ((2, 5, 4), False)])
def test_the_bias_of_a_matmul_is_merged_where_the_two_are_a_gemm(shape, merged):
    net = Toy()
    value = net.conv_node(net.input(*shape), make_conv(0, 6, 4, (), bias=False))
    net.nodes[-1] = replace(net.nodes[-1], kind="MatMul")
    bias = Affine(np.ones(6), np.arange(6.0))
    net.outputs = (net.relu(net.bn(value, bias, axis=-1, kind="Add")),)
    _, fused, refusals = assert_fused(net)
    assert bool(fused) == merged
    assert not refusals


def test_a_bias_and_a_batch_norm_after_a_matmul():
    net = Toy()
    value = net.conv_node(net.input(2, 5, 4), make_conv(0, 6, 4, (), bias=False))
    net.nodes[-1] = replace(net.nodes[-1], kind="MatMul")
    value = net.bn(value, Affine(np.ones(6), np.arange(6.0)), axis=-1, kind="Add")
    for shift in (True, False):
        after = copy.deepcopy(net)
        after.outputs = (after.bn(value, make_affine(0, 6, shift=shift), axis=2),)
        made, _, _ = assert_fused(after)
        assert len(made.nodes) == 1


def test_behind_a_reshape_that_keeps_the_channels():
    """LeViT: linear, the positions flattened into the batch, BatchNorm, and back."""
    net = Toy()
    value = net.conv_node(net.input(2, 5, 4), make_conv(0, 6, 4, ()))
    value = net.bn(net.reshape(value, 10, 6), make_affine(0, 6))
    net.outputs = (net.relu(net.reshape(value, 2, 5, 6)),)
    made, _, refusals = assert_fused(net)
    assert [node.kind for node in made.nodes] == ["merged", "Reshape", "Reshape", "Relu"]
    assert not refusals


def test_behind_a_reshape_that_mixes_the_channels_with_others():
    net = Toy()
    value = net.conv_node(net.input(2, 4, 6, 6), make_conv(0, 4, 4, (1, 1)))
    net.outputs = (net.relu(net.bn(net.reshape(value, 8, 6, 6), make_affine(0, 6), name="bn")),)
    _, fused, refusals = assert_fused(net)
    assert not fused
    assert "no conv next to it" in refusals["bn"]
