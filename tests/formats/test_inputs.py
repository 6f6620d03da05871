"""Seeded inputs, and how many samples a set of inputs holds."""

from __future__ import annotations

import numpy as np
import pytest

from dacconv.formats.inputs import batch_of, count_samples, seeded_inputs
from dacconv.graph.types import ValueSpec


def feeds(**shapes):
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("shapes", "samples"),
    [
        ({"x": (4, 3, 8, 8)}, 4),
        ({"x": (1, 3, 8, 8)}, 1),
        ({"x": (5, 7)}, 5),
        ({"signal": (1000,)}, 1),
        ({"scale": ()}, 1),
        ({"anchors": (1000,), "x": (4, 3, 8, 8)}, 4),
        ({"scale": (), "x": (4, 3, 8, 8)}, 4),
        ({"step": (1,), "x": (4, 3, 8, 8)}, 4),
        ({"x": (4, 3, 8, 8), "anchors": (1000,)}, 4),
        ({}, 1),
    ],
)
def test_samples_are_counted_by_the_first_input_with_axes(shapes, samples):
    assert batch_of(feeds(**shapes)) == samples
    assert count_samples([feeds(**shapes)] * 3) == 3 * samples


@pytest.mark.parametrize("shape", [(), (9,), (1, 9), (2, 9), (None, 9)])
def test_as_many_samples_are_drawn_as_asked_for(shape):
    drawn = seeded_inputs([ValueSpec("t", (3,)), ValueSpec("x", shape)], 8, 0)
    assert count_samples(drawn) == 8
