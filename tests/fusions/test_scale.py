"""Fusion takes time in proportion to the network: counted in bytecode steps, not in seconds."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from conv_reference import make_affine, make_conv
from toy import Toy

from dacconv.fusions import find_fusions
from dacconv.graph.types import Affine


def steps_of(function) -> int:
    """The bytecode instructions that a call executes in Python code."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def conv_norm(net: Toy, value: str, size: int = 3) -> str:
    half = (size // 2, size // 2)
    conv = make_conv(len(net.nodes), 4, 4, (size, size), padding=(half, half))
    return net.bn(net.conv_node(value, conv), make_affine(0, 4))


def loose_pairs(net: Toy, value: str, count: int) -> str:
    scale = Affine(np.full(4, 0.9), np.zeros(4))
    shift = Affine(np.ones(4), np.full(4, 0.1))
    for _ in range(count):
        value = net.bn(net.bn(value, scale, kind="Mul"), shift, kind="Add")
    return value


def linear_residual_blocks(net: Toy, value: str, count: int) -> str:
    for _ in range(count):
        value = net.add(conv_norm(net, value), value)
    return value


def layers(net: Toy, value: str, count: int) -> str:
    for _ in range(count):
        value = net.relu(conv_norm(net, value))
    return value


def pointwise_chain(net: Toy, value: str, count: int) -> str:
    for _ in range(count):
        value = conv_norm(net, value, size=1)
    return value


def parallel_branches(net: Toy, value: str, count: int) -> str:
    total = conv_norm(net, value)
    for _ in range(count):
        total = net.add(total, conv_norm(net, value))
    return total


def parallel_branches_in_one_sum(net: Toy, value: str, count: int) -> str:
    return net.add(*(conv_norm(net, value) for _ in range(count)))


def sum_of_activations(net: Toy, value: str, count: int) -> str:
    total = net.relu(conv_norm(net, value))
    for _ in range(count):
        total = net.add(total, net.relu(conv_norm(net, value)))
    return total


def norms_behind_transposes(net: Toy, value: str, count: int) -> str:
    for _ in range(count):
        conv = make_conv(len(net.nodes), 4, 4, (3, 3), padding=((1, 1), (1, 1)))
        value = net.transpose(net.conv_node(value, conv), (0, 2, 3, 1))
        value = net.bn(value, make_affine(0, 4), axis=3)
        value = net.relu(net.transpose(value, (0, 3, 1, 2)))
    return value


@pytest.mark.parametrize(
    "build",
    [
        loose_pairs,
        linear_residual_blocks,
        layers,
        pointwise_chain,
        parallel_branches,
        parallel_branches_in_one_sum,
        sum_of_activations,
        norms_behind_transposes,
    ],
)
def test_twice_the_network_takes_twice_the_work(build):
    def steps(count: int) -> int:
        net = Toy()
        net.outputs = (build(net, net.input(1, 4, 5, 5), count),)
        return steps_of(lambda: find_fusions(net))

    find_fusions(Toy())
    assert steps(100) < 2.3 * steps(50)


def test_a_sum_of_thousands_of_branches_is_merged():
    net = Toy()
    value = net.input(1, 2, 3, 3)
    total = net.conv_node(value, make_conv(0, 2, 2, (1, 1)))
    for _ in range(1500):
        total = net.add(net.relu(value), total)
    net.outputs = (net.add(total, net.conv_node(value, make_conv(1, 2, 2, (1, 1)))),)
    find_fusions(net)  # deeper than Python's recursion limit
