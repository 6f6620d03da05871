from __future__ import annotations

from conv_reference import make_affine, make_conv
from toy import Toy, assert_fused

PADDED = ((1, 1), (1, 1))


def test_convs_of_one_input_are_joined():
    net = Toy()
    value = net.input(1, 4, 6, 6)
    parts = [
        net.bn(net.conv_node(value, make_conv(0, 3, 4, (3, 3), padding=PADDED)), make_affine(0, 3)),
        net.conv_node(value, make_conv(1, 5, 4, (3, 3), padding=PADDED, bias=False)),
    ]
    net.outputs = (net.relu(net.concat(*parts)),)
    made, fused, refusals = assert_fused(net)
    assert [node.kind for node in made.nodes] == ["merged", "Relu"]
    assert not refusals
    assert "1 Concat" in fused[0].what


def test_linear_layers_of_one_input_are_joined():
    net = Toy()
    value = net.input(2, 5, 4)
    parts = [net.conv_node(value, make_conv(seed, 3, 4, ())) for seed in range(3)]
    net.outputs = (net.concat(*parts, axis=-1),)
    assert len(assert_fused(net)[0].nodes) == 1


def test_what_cannot_be_joined():
    def joined(first, second, axis=1):
        net = Toy()
        value = net.input(1, 4, 6, 6)
        net.outputs = (
            net.concat(net.conv_node(value, first), net.conv_node(value, second), axis=axis),
        )
        _, fused, refusals = assert_fused(net)
        assert not fused
        return refusals.get("concat2")

    wide = make_conv(0, 4, 4, (3, 3), padding=PADDED)
    assert "cost more" in joined(wide, make_conv(1, 4, 4, (1, 1)))
    assert "cost more" in joined(
        make_conv(0, 4, 4, (1, 1), groups=2), make_conv(1, 4, 4, (1, 1), groups=2)
    )
    reflected = make_conv(1, 4, 4, (3, 3), padding=PADDED, pad_mode="reflect")
    assert "borders" in joined(wide, reflected)
    assert joined(wide, make_conv(1, 4, 4, (3, 3), padding=PADDED), axis=2) is None


def test_other_inputs_and_other_readers():
    net = Toy()
    value = net.input(1, 4, 6, 6)
    first = net.conv_node(value, make_conv(0, 4, 4, (1, 1)))
    second = net.conv_node(net.relu(value), make_conv(1, 4, 4, (1, 1)))
    net.outputs = (net.concat(first, second),)
    assert not assert_fused(net)[1]
    net = Toy()
    value = net.input(1, 4, 6, 6)
    first = net.conv_node(value, make_conv(0, 4, 4, (1, 1)))
    second = net.conv_node(value, make_conv(1, 4, 4, (1, 1)))
    net.outputs = (net.concat(first, second), first)
    assert "output of the model" in assert_fused(net)[2]["concat2"]
