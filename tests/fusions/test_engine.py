from __future__ import annotations

from dataclasses import replace

import numpy as np
from conv_reference import make_affine, make_conv, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import Toy, assert_fused

from dacconv.fusions import FUSIONS, find_fusions, fuse
from dacconv.graph.types import Affine

CHANNELS = 4


class Random:
    """Draws a network of linear blocks, extra readers and the odd ReLU, node by node."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.net = Toy()
        self.values = [self.net.input(1, CHANNELS, 8, 8)]

    def pick(self, *options):
        return options[self.rng.integers(len(options))]

    def recent(self) -> str:
        """A value; mostly a late one, so that chains come about, at times the same again."""
        late = self.values[-4:] if self.rng.random() < 0.8 else self.values
        return self.pick(*late)

    def alike(self, value: str, count: int) -> list[str]:
        shape = self.net.shapes[value]
        same = [each for each in self.values if self.net.shapes[each] == shape]
        late = same[-4:]
        return [value, *(self.pick(*late) for _ in range(count - 1))]

    def channels(self, value: str) -> int:
        return self.net.shapes[value][1]

    def conv(self) -> str:
        value = self.recent()
        shape = self.net.shapes[value]
        kernel = self.pick((1, 1), (1, 1), (3, 3), (1, 3), (3, 1))
        dilation = self.pick(1, 1, 1, 2)
        reach = [dilation * (k - 1) for k in kernel]
        pads = tuple((r // 2, r - r // 2) for r in reach)
        if self.rng.random() < 0.2 and min(shape[2:]) > max(reach):
            pads = ((0, 0), (0, 0))
        stride = self.pick(1, 1, 1, 1, 2)
        groups = self.pick(1, 1, 2, 4)
        out = self.pick(CHANNELS, CHANNELS, CHANNELS, 8)
        groups = groups if shape[1] % groups == 0 else 1
        mode = self.pick("zeros", "zeros", "zeros", "zeros", "circular")
        if any(sum(pad) > size for pad, size in zip(pads, shape[2:], strict=True)):
            mode = "zeros"
        conv = make_conv(
            int(self.rng.integers(2**31)), out, shape[1], kernel, stride=(stride, stride),
            padding=pads, dilation=(dilation, dilation), groups=groups,
            bias=bool(self.rng.random() < 0.5), pad_mode=mode,
        )  # fmt: skip
        return self.net.conv_node(value, conv)

    def affine(self) -> str:
        value = self.recent()
        affine = make_affine(
            int(self.rng.integers(2**31)), self.channels(value), shift=self.rng.random() < 0.7
        )
        if self.rng.random() < 0.2:
            affine = Affine(np.array(float(self.rng.normal())), np.array(0.0))
        return self.net.bn(value, affine)

    def add(self) -> str:
        values = self.alike(self.recent(), self.pick(2, 2, 3))
        scales = self.pick(None, None, tuple(float(self.pick(1, -1, 0.5)) for _ in values))
        return self.net.add(*values, coefficients=scales)

    def concat(self) -> str:
        value = self.recent()
        if self.channels(value) > CHANNELS:
            return self.conv()
        return self.net.concat(*self.alike(value, 2))

    def pool(self) -> str:
        value = self.recent()
        if min(self.net.shapes[value][2:]) < 3:
            return self.affine()
        kernel, stride, padding = self.pick((3, 1, 1), (2, 2, 0), (3, 2, 1), (1, 2, 0))
        ceil, include = self.pick(False, False, True), self.pick(True, True, False)
        return self.net.pool(value, kernel, stride, padding, ceil=ceil, include=include)

    def pad(self) -> str:
        value = self.recent()
        border = 0.0
        maker = next((n for n in self.net.nodes if n.output == value), None)
        if maker is not None and maker.op == "conv" and self.rng.random() < 0.7:
            bias = self.net.conv(maker.name).bias
            border = 0.0 if bias is None else bias
        side = self.pick((1, 1), (0, 1))
        return self.net.pad(value, ((0, 0), (0, 0), side, side), border)

    def keras(self) -> str:
        """Arithmetic on the last axis between two transposes."""
        value = self.net.transpose(self.recent(), (0, 2, 3, 1))
        channels = self.net.shapes[value][-1]
        affine = make_affine(int(self.rng.integers(2**31)), channels)
        value = self.net.bn(value, affine, axis=3, kind="Mul")
        return self.net.transpose(value, (0, 3, 1, 2))

    def build(self, size: int) -> Toy:
        steps = [
            self.conv, self.conv, self.conv, self.conv, self.affine, self.affine, self.affine,
            self.add, self.add, self.add, self.concat, self.pool, self.pad, self.keras,
            lambda: self.net.relu(self.recent()), lambda: self.net.identity(self.recent()),
        ]  # fmt: skip
        for _ in range(size):
            self.values.append(self.pick(*steps)())
        read = {value for node in self.net.nodes for value in node.inputs}
        ends = [node.output for node in self.net.nodes if node.output not in read]
        extra = [self.pick(*self.values[1:])] if self.rng.random() < 0.3 else []
        self.net.outputs = tuple(dict.fromkeys([*ends, *extra]))
        return self.net


class Blocks(Random):
    """Draws branch blocks as re-parameterised networks have them, some of them sabotaged."""

    def seed(self) -> int:
        return int(self.rng.integers(2**31))

    def unit(self, value, out, kernel, stride, groups, pads=None) -> str:
        half = ((kernel - 1) // 2,) * 2
        conv = make_conv(
            self.seed(), out, self.channels(value), (kernel, kernel), stride=(stride, stride),
            padding=pads or (half, half), groups=groups, bias=bool(self.rng.random() < 0.3),
        )  # fmt: skip
        value = self.net.conv_node(value, conv)
        return self.net.bn(value, make_affine(self.seed(), out)) if self.pick(1, 1, 0) else value

    def bordered(self, value, out, groups) -> str:
        """1x1 -> BatchNorm -> padding with its shift."""
        affine = make_affine(self.seed(), out)
        conv = make_conv(self.seed(), out, self.channels(value), (1, 1), groups=groups, bias=False)
        value = self.net.bn(self.net.conv_node(value, conv), affine)
        border = affine.shift if self.rng.random() < 0.9 else affine.shift + 1
        return self.net.pad(value, ((0, 0), (0, 0), (1, 1), (1, 1)), border)

    def branch(self, x: str, out: int, stride: int, groups: int) -> str:
        kinds = ["3x3", "1x1", "1x1-3x3", "1x1-pool", "pool", "asymmetric"]
        if stride == 1 and out == self.channels(x):
            kinds += ["identity", "norm"]
        none = ((0, 0), (0, 0))
        match self.pick(*kinds):
            case "3x3":
                return self.unit(x, out, 3, stride, groups)
            case "1x1":
                return self.unit(x, out, 1, stride, groups)
            case "1x1-3x3":
                return self.unit(self.bordered(x, out, groups), out, 3, stride, groups, none)
            case "1x1-pool":
                value = self.net.pool(self.bordered(x, out, groups), 3, stride)
                return self.net.bn(value, make_affine(self.seed(), out))
            case "pool":
                if out != self.channels(x):
                    return self.unit(x, out, 3, stride, groups)
                return self.net.pool(x, 3, stride, 1, include=self.pick(True, True, False))
            case "asymmetric":
                kernel, pads = self.pick(((1, 3), ((0, 0), (1, 1))), ((3, 1), ((1, 1), (0, 0))))
                conv = make_conv(
                    self.seed(), out, self.channels(x), kernel, stride=(stride, stride),
                    padding=pads, groups=groups,
                )  # fmt: skip
                return self.net.conv_node(x, conv)
            case "norm":
                return self.net.bn(x, make_affine(self.seed(), out))
        return x

    def build(self, size: int) -> Toy:
        value = self.values[0]
        extra = []
        for _ in range(size):
            stride = self.pick(1, 1, 1, 2) if min(self.net.shapes[value][2:]) > 3 else 1
            groups, out = self.pick(1, 1, 2, 4), self.pick(CHANNELS, CHANNELS, 8)
            branches = [self.branch(value, out, stride, groups) for _ in range(self.pick(2, 3, 4))]
            branches.insert(0, self.unit(value, out, 3, stride, groups))
            if self.rng.random() < 0.15:
                extra.append(self.net.relu(self.pick(*branches)))
            total = branches[0]
            for other in branches[1:]:
                total = self.net.add(total, other)
            scale = Affine(self.rng.normal(size=out), np.zeros(out))
            total = self.net.bn(total, scale, kind="Mul") if self.pick(0, 0, 1) else total
            value = self.net.relu(total) if self.pick(0, 1, 1) else total
        self.net.outputs = tuple(dict.fromkeys([value, *extra]))
        return self.net


@given(seeds, st.integers(1, 3))
@settings(deadline=None, max_examples=100)
def test_random_blocks_compute_what_they_did(seed, size):
    net = Blocks(seed).build(size)
    made, _, _ = assert_fused(net, tolerance=1e-8)
    _, more, _ = assert_fused(replace_merged(made), tolerance=1e-8)
    assert not more


@given(seeds, st.integers(2, 14))
@settings(deadline=None, max_examples=150)
def test_random_networks_compute_what_they_did(seed, size):
    net = Random(seed).build(size)
    made, fused, _ = assert_fused(net, tolerance=1e-8)
    assert made.count() <= net.count()
    assert len(made.nodes) <= len(net.nodes)
    absorbed = [name for each in fused for name in each.absorbed]
    assert len(absorbed) == len(set(absorbed))
    again, more, _ = assert_fused(replace_merged(made), tolerance=1e-8)
    assert not more, "one run reaches the fixed point"
    assert again.count() == made.count()


def replace_merged(net: Toy) -> Toy:
    """The rewritten toy with its merged convs as nodes that can be fused again."""
    nodes, payload = [], dict(net.payload)
    for node in net.nodes:
        if node.kind == "merged":
            conv = net.payload[node.name].branches[0][0]
            payload[node.name] = conv
            node = replace(node, op="conv", kind="Conv", weight=node.name)
        nodes.append(node)
    return Toy(nodes, payload, net.specs, net.outputs, net.shapes)


def test_nothing_to_do_returns_the_model_itself():
    net = Toy()
    net.outputs = (net.relu(net.input(1, 4, 6, 6)),)
    made, fused, refusals = fuse(net)
    assert made is net
    assert fused == refusals == ()


def repvgg() -> Toy:
    net = Toy()
    x = net.input(1, 4, 6, 6)
    wide = net.conv_node(x, make_conv(0, 4, 4, (3, 3), padding=((1, 1), (1, 1))))
    wide = net.bn(wide, make_affine(0, 4))
    small = net.bn(net.conv_node(x, make_conv(1, 4, 4, (1, 1))), make_affine(1, 4))
    net.outputs = (net.add(wide, small),)
    return net


class Strict(Toy):
    """A format that cannot take sums apart."""

    def rewrite_refusal(self, edit, among=()):
        kinds = {node.op for node in self.nodes if node.name in edit.drop}
        return "a sum is a call in Python code" if "add" in kinds else None


def test_what_a_format_cannot_take_is_left_out_and_the_rest_is_kept():
    plain = repvgg()
    net = Strict(**{name: getattr(plain, name) for name in plain.__dataclass_fields__})
    made, fused, refusals = assert_fused(net)
    assert [each.absorbed for each in fused] == [
        ("conv0", "batchnorm1"),
        ("conv2", "batchnorm3"),
    ]
    assert refusals["add4"] == "a sum is a call in Python code"
    assert made.count() == 2


def test_what_was_merged_is_told_in_short():
    found = find_fusions(repvgg())
    assert [edit.reason for edit in found.rewrites] == ["2 Conv, 2 BatchNorm, 1 Add"]
    assert found.rewrites[0].source == "x"
    assert found.fused[0].name == "conv0"


def test_weights_of_layers_that_do_not_change_are_not_read():
    class Counting(Toy):
        read = ()

        def conv(self, node):
            self.read = (*self.read, node)
            return Toy.conv(self, node)

    net = Counting()
    value = net.relu(net.conv_node(net.input(1, 4, 6, 6), make_conv(0, 4, 4, (3, 3))))
    net.outputs = (net.relu(net.conv_node(value, make_conv(0, 4, 4, (3, 3)))),)
    fuse(net)
    assert net.read == ()


def test_every_transform_has_a_name_of_its_own():
    names = [fusion.name for fusion in FUSIONS]
    assert len(names) == len(set(names))
