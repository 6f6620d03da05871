from __future__ import annotations

import numpy as np
import pytest

from dacconv.calibration.inputs.images import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(24, 20), (80,), (6, 7, 5)])
def test_images_are_within_bounds_and_the_same_every_time(family, size):
    draw = FAMILIES[family]
    first, again, other = draw(3, 2, size, 5), draw(3, 2, size, 5), draw(3, 2, size, 6)
    assert first.shape == (3, 2, *size)
    assert first.dtype == np.float32
    assert first.min() >= 0
    assert first.max() <= 1
    assert first.std() > 0.05
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_are_alike_as_in_natural_images(family):
    images = FAMILIES[family](8, 3, (32, 32), 0)
    flat = images - images.mean(axis=(2, 3), keepdims=True)
    near = (flat[..., :-1] * flat[..., 1:]).mean() / (flat**2).mean()
    far = (flat[..., :-12] * flat[..., 12:]).mean() / (flat**2).mean()
    assert near > 0.7
    assert near > far + 0.2
