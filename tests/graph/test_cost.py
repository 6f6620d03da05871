from dataclasses import replace

from dacconv.graph.cost import layer_cost, shared_cost, total
from dacconv.graph.types import Geometry

CONV = Geometry(16, 32, (3, 3), (2, 2), (1, 1), 1, True, (20, 10), (10, 5))


def test_a_conv():
    cost = layer_cost(CONV)
    assert cost.macs == 10 * 5 * 32 * 16 * 9
    assert cost.params == 32 * 16 * 9 + 32
    assert cost.traffic == 4 * (20 * 10 * 16 + 10 * 5 * 32 + cost.params)


def test_groups_batch_and_half_precision():
    cost = layer_cost(replace(CONV, groups=4, bias=False, batch=3, itemsize=2))
    assert cost.macs == 3 * 10 * 5 * 32 * 4 * 9
    assert cost.params == 32 * 4 * 9
    assert cost.traffic == 2 * (3 * (20 * 10 * 16 + 10 * 5 * 32) + cost.params)


def test_a_transposed_conv_is_counted_over_its_input():
    assert layer_cost(replace(CONV, transposed=True)).macs == 20 * 10 * 32 * 16 * 9


def test_a_linear_layer():
    linear = Geometry(100, 10, (), (), (), 1, True, (), ())
    assert layer_cost(linear).macs == 1000
    assert layer_cost(replace(linear, input_size=(7,), output_size=(7,))).macs == 7000


def test_what_is_unknown_stays_unknown():
    cost = layer_cost(replace(CONV, input_size=None, output_size=None))
    assert cost.macs is None
    assert cost.traffic is None
    assert total([cost, layer_cost(CONV)]).macs is None
    assert total([cost, cost]).params == 2 * cost.params


def test_a_shared_weight_is_stored_once_and_run_twice():
    one, two = layer_cost(CONV), shared_cost([CONV, CONV])
    assert two.macs == 2 * one.macs
    assert two.params == one.params
