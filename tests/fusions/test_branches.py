from __future__ import annotations

import numpy as np
import pytest
from conv_reference import make_affine, make_conv
from toy import Toy, assert_fused

from dacconv.graph.types import Affine


def padded(seed, out, channels, kernel, **more):
    pads = tuple(((k - 1) // 2, (k - 1) // 2) for k in kernel)
    return make_conv(seed, out, channels, kernel, padding=pads, **more)


class Block(Toy):
    """A toy with a conv and its BatchNorm in one call."""

    def unit(self, value, conv, seed=0):
        return self.bn(self.conv_node(value, conv), make_affine(seed, conv.out_channels))


def one_conv(net) -> None:
    made, fused, refusals = assert_fused(net)
    assert [node.kind for node in made.nodes] == ["merged"]
    assert len(fused) == 1
    assert not refusals


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_repvgg_with_its_identity(groups):
    net = Block()
    x = net.input(1, 8, 7, 7)
    dense = net.unit(x, padded(0, 8, 8, (3, 3), groups=groups, bias=False), 1)
    point = net.unit(x, padded(1, 8, 8, (1, 1), groups=groups, bias=False), 2)
    net.outputs = (net.add(net.add(dense, point), net.bn(x, make_affine(3, 8))),)
    one_conv(net)


@pytest.mark.parametrize("stride", [1, 2])
def test_acnet(stride):
    net = Block()
    x = net.input(1, 8, 7, 7)
    units = [
        net.unit(x, padded(k, 8, 8, kernel, stride=(stride, stride), bias=False), k)
        for k, kernel in enumerate([(3, 1), (1, 3), (3, 3)])
    ]
    net.outputs = (net.add(net.add(units[0], units[1]), units[2]),)
    one_conv(net)


def test_diverse_branch_block():
    net = Block()
    x = net.input(1, 4, 7, 7)

    def bordered(seed, out):
        affine = make_affine(seed, out)
        value = net.bn(net.conv_node(x, make_conv(seed, out, 4, (1, 1), bias=False)), affine)
        return net.pad(value, ((0, 0), (0, 0), (1, 1), (1, 1)), affine.shift)

    branches = [
        net.unit(x, padded(0, 8, 4, (3, 3), bias=False), 1),
        net.unit(x, padded(1, 8, 4, (1, 1), bias=False), 2),
        net.unit(bordered(3, 4), make_conv(4, 8, 4, (3, 3), bias=False), 3),
        net.bn(net.pool(bordered(5, 8), 3), make_affine(6, 8)),
    ]
    total = branches[0]
    for branch in branches[1:]:
        total = net.add(total, branch)
    net.outputs = (total,)
    one_conv(net)


def test_nests_and_layer_scale():
    net = Block()
    x = net.input(1, 4, 7, 7)
    inner = net.add(net.unit(x, padded(0, 4, 4, (3, 3))), net.unit(x, padded(1, 4, 4, (3, 1))), x)
    scaled = net.bn(inner, Affine(np.full(4, 1e-2), np.zeros(4)), kind="Mul")
    net.outputs = (net.add(net.unit(x, padded(2, 4, 4, (1, 1))), scaled, x),)
    one_conv(net)


def test_a_difference_and_a_weighted_sum():
    net = Block()
    x = net.input(1, 4, 7, 7)
    a, b = net.conv_node(x, padded(0, 4, 4, (3, 3))), net.conv_node(x, padded(1, 4, 4, (1, 1)))
    inner = net.add(a, b, coefficients=(1.0, -1.0))
    net.outputs = (net.add(inner, x, coefficients=(-0.5, 3.0)),)
    one_conv(net)


def test_pools_and_scaled_inputs():
    net = Block()
    x = net.input(1, 4, 7, 7)
    dense = net.conv_node(x, padded(0, 4, 4, (3, 3)))
    mean = net.pool(x, 3, padding=1)
    net.outputs = (net.add(dense, mean, net.bn(x, Affine(np.array(2.0), np.array(1.0)))),)
    one_conv(net)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "options"),
    [(3, 1, 1, {"include": False}), (2, 2, 0, {"ceil": True})],
)
def test_pools_whose_border_or_size_differs(kernel, stride, padding, options):
    net = Block()
    x = net.input(1, 4, 7, 7)
    dense = net.conv_node(x, padded(0, 4, 4, (3, 3), stride=(stride, stride)))
    net.outputs = (net.add(dense, net.pool(x, kernel, stride, padding, **options)),)
    _, fused, refusals = assert_fused(net)
    assert not fused
    assert "branches not merged" in refusals["add2"]


def test_rounding_up_that_changes_nothing_is_no_obstacle():
    net = Block()
    x = net.input(1, 4, 7, 7)
    dense = net.conv_node(x, padded(0, 4, 4, (3, 3), stride=(2, 2)))
    net.outputs = (net.add(dense, net.pool(x, 3, 2, 1, ceil=True)),)
    one_conv(net)


def test_a_residual_around_one_conv_and_a_residual_around_more():
    net = Block()
    x = net.input(1, 4, 7, 7)
    net.outputs = (net.add(x, net.unit(x, padded(0, 4, 4, (3, 3)))),)
    one_conv(net)
    net = Block()
    x = net.input(1, 4, 7, 7)
    inner = net.relu(net.unit(x, padded(0, 4, 4, (3, 3))))
    net.outputs = (net.add(x, net.unit(inner, padded(1, 4, 4, (3, 3)))),)
    made, fused, refusals = assert_fused(net)
    assert len(fused) == 2
    assert not refusals
    assert "Add" in [node.kind for node in made.nodes]


def test_linear_layers_that_are_added():
    net = Block()
    x = net.input(2, 5, 4)
    a, b = net.conv_node(x, make_conv(0, 4, 4, ())), net.conv_node(x, make_conv(1, 4, 4, ()))
    net.outputs = (net.add(net.add(a, b), x),)
    one_conv(net)


def test_what_must_not_be_merged():
    def reason(first, second, out=4):
        net = Block()
        x = net.input(1, 4, 8, 8)
        a, b = net.conv_node(x, first), net.conv_node(x, second)
        net.outputs = (net.add(a, b, name="sum"),)
        _, fused, refusals = assert_fused(net)
        assert not fused
        return refusals["sum"]

    wide = padded(0, 4, 4, (3, 3))
    small = make_conv(1, 4, 4, (1, 1))
    mirrored = make_conv(1, 4, 4, (5, 5), padding=((2, 2), (2, 2)), pad_mode="reflect")
    assert "borders" in reason(wide, mirrored)
    assert "cost more" in reason(padded(0, 4, 4, (1, 3)), padded(1, 4, 4, (3, 1)))
    spread = make_conv(1, 4, 4, (3, 3), padding=((2, 2), (2, 2)), dilation=(2, 2))
    assert "cost more" in reason(wide, spread)
    depthwise = padded(1, 4, 4, (5, 5), groups=4)
    assert "cost more" in reason(small, depthwise)


def test_sizes_that_only_a_fixed_input_makes_equal():
    for known in (True, False):
        net = Block(known_shapes=known)
        x = net.input(1, 4, 8, 8)
        a = net.conv_node(x, padded(0, 4, 4, (3, 3), stride=(2, 2)))
        b = net.conv_node(x, make_conv(1, 4, 4, (2, 2), stride=(2, 2)))
        inner = net.add(a, b)
        net.specs = [spec if known else type(spec)("x", None) for spec in net.specs]
        net.outputs = (inner,)
        if known:
            one_conv(net)


def test_values_used_elsewhere():
    net = Block()
    x = net.input(1, 4, 8, 8)
    a = net.conv_node(x, padded(0, 4, 4, (3, 3)))
    b = net.conv_node(x, padded(1, 4, 4, (1, 1)))
    net.outputs = (net.add(a, b, name="sum"), net.relu(b))
    _, fused, refusals = assert_fused(net)
    assert not fused
    assert "also read by relu3" in refusals["sum"]
    net = Block()
    x = net.input(1, 4, 8, 8)
    a = net.conv_node(x, padded(0, 4, 4, (3, 3)))
    net.outputs = (net.add(a, a),)
    one_conv(net)


def test_a_value_that_only_the_branches_share():
    """RVSR's block: y = conv(pad(h)) + h with h = conv1x1(x), padded with its bias."""
    net = Block()
    x = net.input(1, 4, 8, 8)
    expand = make_conv(0, 8, 4, (1, 1))
    h = net.conv_node(x, expand)
    border = net.pad(h, ((0, 0), (0, 0), (1, 1), (1, 1)), expand.bias)
    net.outputs = (net.add(net.conv_node(border, make_conv(1, 8, 8, (3, 3))), h),)
    one_conv(net)


def test_branches_among_other_summands():
    for order in ((0, 2, 1), (2, 0, 1), (0, 1, 2)):
        net = Block()
        x = net.input(1, 4, 8, 8)
        terms = [
            net.unit(x, padded(0, 4, 4, (3, 3))),
            net.conv_node(x, padded(1, 4, 4, (1, 1))),
            net.relu(x),
        ]
        a, b, c = (terms[index] for index in order)
        net.outputs = (net.relu(net.add(net.add(a, b, coefficients=(1.0, -2.0)), c)),)
        made, fused, _ = assert_fused(net)
        assert len(fused) == 1
        assert sorted(node.kind for node in made.nodes) == ["Add", "Relu", "Relu", "merged"]


def test_a_branch_that_cannot_be_merged_does_not_hold_up_the_others():
    net = Block()
    x = net.input(1, 4, 8, 8)
    mean = net.pool(x, 3, 1, 1, include=False)
    total = net.add(net.unit(x, padded(0, 4, 4, (3, 3))), mean)
    net.outputs = (net.relu(net.add(total, net.unit(x, padded(1, 4, 4, (1, 1))))),)
    made, _, refusals = assert_fused(net)
    assert made.count() == 1
    assert "does not count its padding" in next(iter(refusals.values()))


def test_among_other_summands_one_that_others_read_stays():
    net = Block()
    x = net.input(1, 4, 8, 8)
    h = net.conv_node(x, padded(0, 4, 4, (3, 3)))
    total = net.add(h, net.relu(h))
    net.outputs = (net.relu(net.add(total, net.conv_node(x, padded(1, 4, 4, (1, 1))))),)
    made, fused, _ = assert_fused(net)
    assert not fused
    assert made.count() == 2


def test_a_conv_and_its_own_output_added():
    """y = conv(h) + h where h is a conv itself: h is the common input, not x."""
    net = Block()
    h = net.conv_node(net.input(1, 4, 8, 8), padded(0, 4, 4, (3, 3)))
    net.outputs = (net.add(net.conv_node(h, padded(1, 4, 4, (3, 3))), h),)
    made, _, _ = assert_fused(net)
    assert made.count() == 2
