from __future__ import annotations

import numpy as np
import pytest

from dacconv.calibration.inputs.families import synthetic_inputs
from dacconv.calibration.inputs.images import FAMILIES
from dacconv.calibration.inputs.pixels import InputOptions
from tests import onnx_nets


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


def test_a_first_conv_that_does_not_fit_the_input_tells_no_scale(tmp_path):
    """The file says 10 channels, its weights take 4; no runtime runs it."""
    nodes = [
        onnx_nets.node("Conv", ["x", "w"], ["a"], name="conv"),
        onnx_nets.node("BatchNormalization", ["a", "g", "b", "m", "v"], ["y"], name="bn"),
    ]
    constants = {"w": onnx_nets.weights(8, 4, 3, 3)}
    constants |= {name: np.ones(8, np.float32) for name in "gbmv"}
    proto = onnx_nets.model(nodes, constants, inputs={"x": (1, 10, 9, 8)})
    inputs, scale = synthetic_inputs(onnx_nets.opened(proto, tmp_path), InputOptions(), 0, 16)
    assert inputs.images.shape[1:] == (10, 9, 8)
    assert scale.guessed
