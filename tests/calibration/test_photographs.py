"""Crops of the photographs that the package carries."""

import numpy as np
import pytest

from dacconv.calibration.inputs.photographs import NAMES, photographs, suit


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (1, 2), (40, 96), (300, 5)])
def test_crops_of_any_size(channels, size):
    images = photographs(9, channels, size, 0)
    assert images.shape == (9, channels, *size)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    np.testing.assert_array_equal(images, photographs(9, channels, size, 0))
    assert not np.array_equal(images, photographs(9, channels, size, 1))


def test_no_crops_at_all():
    assert photographs(0, 3, (8, 9), 0).shape == (0, 3, 8, 9)


def test_crops_differ_and_have_contrast():
    images = photographs(2 * len(NAMES), 3, (32, 32), 0)
    assert (images.std(axis=(1, 2, 3)) > 0.02).all()
    assert len({image.tobytes() for image in images}) == len(images)


def test_only_pictures_are_replaced_by_photographs():
    assert suit(3, (8, 8))
    assert suit(1, (8, 8))
    assert not suit(4, (8, 8))
    assert not suit(1, (160,))
