"""Which scale of the input a model without statistics is likely to have been trained on."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import dacconv
from dacconv.calibration.inputs.image_input import find_image_input
from dacconv.calibration.inputs.images import dead_leaves
from dacconv.calibration.inputs.pixels import InputOptions, pixel_scale
from dacconv.calibration.inputs.scale import PixelScale
from dacconv.calibration.inputs.scale_evidence import mutual_information, spread


def test_mutual_information_of_predictions():
    sure = 20 * np.eye(4)
    assert mutual_information([{"y": sure}]) == pytest.approx(math.log(4), abs=1e-3)
    assert mutual_information([{"y": np.ones((4, 3))}]) == pytest.approx(0)
    halves = np.full((2, 2), 0.5)
    assert mutual_information([{"y": halves}, {"y": np.eye(2)}]) == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize(
    "outputs",
    [
        {"y": np.ones((2, 1))},
        {"y": np.ones((2, 4, 5))},
        {"y": np.ones(2)},
        {"y": np.ones((2, 3), np.int64)},
        {"y": np.full((2, 3), np.nan)},
    ],
    ids=["one value", "boxes", "no batch axis", "whole numbers", "NaN"],
)
def test_outputs_that_are_no_classes_say_nothing(outputs):
    assert mutual_information([outputs]) == 0


def classifier(path, gain):
    """A network whose classes depend on images whose pixels have a range of ``gain``."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 20),
    )  # fmt: skip
    with torch.no_grad():
        net[0].weight *= 8 / gain
        net[0].bias.normal_(0, 0.05 if gain > 100 else 0.5)
        net[3].weight *= 4
        net[7].weight *= 20
    torch.save(net.eval(), path)
    shapes = {"": (1, 3, 32, 32)}
    return dacconv.load(path, trust_pickle=True, input_shapes=shapes)


@pytest.mark.parametrize("gain", [1.0, 4.0, 255.0])
def test_the_scale_that_a_classifier_was_trained_on_is_the_most_likely(tmp_path, gain):
    model = classifier(tmp_path / "net.pt", gain)
    image_input = find_image_input(model, None)
    images = dead_leaves(8, 3, (32, 32), 0)
    scale = pixel_scale(model, image_input, InputOptions(), images)
    assert scale.guessed
    assert "most likely" in scale.description
    assert "--input-range" in scale.description
    gains = [float(s.gain.mean()) for s in (scale, *scale.alternatives)]
    assert 1 / 4.5 < gains[0] / gain < 4.5
    assert any(1 / 2 < each / gain < 2 for each in gains)


def test_images_are_spread_over_scales_of_similar_gain():
    images = np.ones((6, 1, 2, 2), np.float32)
    scales = [PixelScale(np.array([g]), np.zeros(1), "") for g in (2.0, 255.0)]
    best = PixelScale(np.ones(1), np.zeros(1), "", guessed=True, alternatives=tuple(scales))
    assert spread(best, images)[:, 0, 0, 0].tolist() == [1, 2, 1, 2, 1, 2]
