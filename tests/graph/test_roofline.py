import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dacconv.graph.cost import Cost, layer_cost
from dacconv.graph.roofline import NOTHING, Moved, groups, intensity, of_convs, total, widths
from dacconv.graph.types import Geometry

SIZES = st.integers(1, 64)


def point(c1: int, c2: int, side: int, batch: int = 1) -> Geometry:
    area = (side, side)
    return Geometry(c1, c2, (1, 1), (1, 1), (1, 1), 1, False, area, area, batch)


@given(SIZES, SIZES, SIZES, st.integers(1, 4))
def test_g1_is_one_exactly_where_the_widths_are_equal(c1, c2, side, batch):
    moved = widths(point(c1, c2, side, batch))
    assert moved.bytes == layer_cost(point(c1, c2, side, batch)).traffic
    assert moved.ratio >= 1 - 1e-12
    assert (moved.ratio == pytest.approx(1, abs=1e-12)) == (c1 == c2)


@given(SIZES, SIZES, SIZES)
def test_g1_is_the_bound_of_the_paper(c1, c2, side):
    area = side * side
    macs = area * c1 * c2
    assert widths(point(c1, c2, side)).least == pytest.approx(
        4 * (2 * math.sqrt(area * macs) + macs / area)
    )


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), SIZES)
def test_g2_grows_with_the_groups_at_equal_macs(inputs, outputs, g, k, side):
    """The ungrouped conv that is the optimum has the same MACs, and moves what is said."""
    area, c1, c2 = (side, side), inputs * g, outputs * g
    grouped = Geometry(c1, c2, (k, k), (1, 1), (1, 1), g, False, area, area)
    plain = replace(grouped, groups=1, out_channels=c2 // g)
    assert layer_cost(plain).macs == layer_cost(grouped).macs
    moved = groups(grouped)
    if g == 1:
        assert moved == Moved()
        return
    assert moved.bytes == layer_cost(grouped).traffic
    assert moved.least == pytest.approx(layer_cost(plain).traffic)
    assert moved.ratio > 1


def test_what_a_guideline_does_not_speak_of():
    conv = replace(point(4, 8, 5), kernel=(3, 3))
    assert widths(conv) == Moved()
    assert widths(replace(point(4, 8, 5), stride=(2, 2))) == Moved()
    assert widths(conv).ratio is None
    assert widths(replace(point(4, 8, 5), output_size=None)) is None
    assert groups(replace(conv, groups=4, input_size=None)) is None
    linear = Geometry(4, 8, (), (), (), 1, True, (), ())
    assert widths(linear) == Moved()


def test_intensity_is_macs_per_byte():
    assert intensity(Cost(30, 5, 10)) == 3
    assert intensity(Cost(None, 5, 10)) is None
    assert intensity(Cost(0, 0, 0)) is None


def test_sums_weigh_by_bytes_and_are_unknown_with_a_part():
    a, b = point(4, 4, 3), point(16, 4, 3)
    parts = [of_convs([g], layer_cost(g), 100, operators=2, layers=1) for g in (a, b)]
    both = total(parts)
    moved = [widths(g) for g in (a, b)]
    assert both.guidelines["widths"] == pytest.approx(
        sum(m.bytes for m in moved) / sum(m.least for m in moved)
    )
    assert both.guidelines["fragmentation"] == 2
    assert both.guidelines["elementwise"] == 1 + 200 / both.convs
    assert both.guidelines["groups"] is None
    unknown = of_convs([a], layer_cost(a), None, operators=1, layers=1)
    assert total([*parts, unknown]).guidelines["elementwise"] is None
    assert NOTHING.guidelines == dict.fromkeys(both.guidelines)
