"""How likely each usual scale of a model's input is, where its statistics do not tell.

A trained classifier is sure of its classes on natural images, and its classes differ from image
to image. At a scale that is far too small the biases decide: every image gives the same output.
So each candidate is scored by the mutual information between images and classes, the entropy of
the mean prediction less the mean entropy of the predictions (as in Bridle et al. 1991,
"Unsupervised classifiers, mutual information and phantom targets"). At a scale that is far too
large that information is high as well; there the first conv's response to the pixels exceeds its
biases by far more than in a network that was trained on them, so that both are taken together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dacconv.calibration.inputs.image_input import ImageInput, batch_maker
from dacconv.calibration.inputs.scale import BYTES, PixelScale, bias_ratio
from dacconv.errors import DacconvError
from dacconv.formats.base import Model, Runner
from dacconv.fusions.merged import MergedModel
from dacconv.graph.types import Array, FloatArray

IMAGES = 8
"""Images that the model is run on at every candidate scale."""
PLAUSIBLE = 0.1
"""The least probability, relative to the sum over all candidates, of a scale that counts."""
LEAST_INFORMATION = 0.25
"""Mutual information, in nats, below which outputs say nothing about the scale."""
SHARPNESS = 3
"""The power of the information, relative to the best scale's, that a probability grows with."""
SIMILAR_GAIN = 4.0
"""Scales whose gains differ by less can be fitted to together."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A usual scale: its name, gain and offset per channel, and how common it is."""

    name: str
    gain: NDArray[np.float64]
    offset: NDArray[np.float64]
    common: float


def candidates(channels: int, *, restores: bool) -> list[Candidate]:
    """The usual scales of images with 1 or 3 channels.

    ``restores``: the output is an image like the input, which is never normalised by statistics.
    """
    ones = np.ones(channels)
    if channels == 3:
        mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
        middle, common = np.array((123.68, 116.779, 103.939)), (1.0, 1.0, 1.5, 0.5, 1.0)
    else:
        mean, std, middle, common = 0.45 * ones, 0.25 * ones, 118 * ones, (1.0, 1.0, 1.0, 1.0, 0.3)
    usual = [
        Candidate("0..1", ones, 0 * ones, common[0]),
        Candidate("-1..1", 2 * ones, -ones, common[1]),
        Candidate("about -2..2", 1 / std, -mean / std, common[2]),
        Candidate("0..255", BYTES * ones, 0 * ones, common[3]),
        Candidate("0..255 less a mean", BYTES * ones, -middle, common[4]),
    ]
    return [replace(usual[0], common=3.0), usual[1], usual[3]] if restores else usual


def likely_scales(
    model: Model,
    view: Model | MergedModel,
    image_input: ImageInput,
    images: FloatArray,
    runner: Runner | None = None,
    *,
    restores: bool = False,
) -> list[tuple[float, PixelScale]]:
    """The plausible scales with their probabilities, the most likely first.

    ``images`` ``(count, channels, *size)`` in 0..1 are natural or drawn ones.
    """
    usual = candidates(image_input.channels, restores=restores)
    information = [0.0] * len(usual)
    if not restores:
        information = _information(model, image_input, images[:IMAGES], usual, runner)
    most = max(information)
    informed = most >= LEAST_INFORMATION
    weights = []
    for candidate, amount in zip(usual, information, strict=True):
        ratio = bias_ratio(view, candidate.gain[0] * images[:IMAGES])
        distance = 0.0 if ratio is None else abs(math.log10(ratio))
        weight = candidate.common * math.exp(-(1 if informed else 2) * distance)
        weights.append(weight * (amount / most) ** SHARPNESS if informed else weight)
    total = sum(weights)
    ranked = sorted(
        ((weight / total, c) for weight, c in zip(weights, usual, strict=True)),
        key=lambda each: -each[0],
    )
    return [
        (share, PixelScale(c.gain, c.offset, c.name, guessed=True))
        for share, c in ranked
        if share >= PLAUSIBLE
    ]


def with_alternatives(ranked: Sequence[tuple[float, PixelScale]], hint: str) -> PixelScale:
    """The most likely scale with the other plausible ones, and a description of the evidence."""
    share, best = ranked[0]
    others = ", ".join(f"{s.description} ({p:.0%})" for p, s in ranked[1:])
    text = (
        f"the model does not state how its input is scaled; {best.description} is the most likely"
    )
    text += f" ({share:.0%}), then {others}" if others else f" ({share:.0%})"
    return replace(
        best, description=f"{text}; {hint}", alternatives=tuple(scale for _, scale in ranked[1:])
    )


def spread(scale: PixelScale, images: FloatArray) -> FloatArray:
    """The images at the scale and, in turns, at its alternatives of a similar gain."""
    gain = float(np.mean(scale.gain))
    near = [scale] + [
        other
        for other in scale.alternatives
        if 1 / SIMILAR_GAIN < float(np.mean(other.gain)) / gain < SIMILAR_GAIN
    ]
    scaled = np.empty_like(images, dtype=np.float32)
    for index, each in enumerate(near):
        scaled[index :: len(near)] = each.apply(images[index :: len(near)])
    return scaled


def _information(
    model: Model,
    image_input: ImageInput,
    images: FloatArray,
    usual: Sequence[Candidate],
    runner: Runner | None,
) -> list[float]:
    """The mutual information between images and classes at each scale; zeros where unknown."""
    feed = batch_maker(model, image_input, 0)
    run = runner or model.runner()
    amounts = []
    for candidate in usual:
        scale = PixelScale(candidate.gain, candidate.offset, candidate.name)
        try:
            outputs = [run(feeds) for feeds in feed(scale.apply(images))]
        except DacconvError:
            return [0.0] * len(usual)
        amounts.append(mutual_information(outputs) if outputs else 0.0)
    return amounts


def mutual_information(outputs: Sequence[Mapping[str, Array]]) -> float:
    """The information, in nats, that the first classifier-like output has about the image.

    An output counts as a classifier's where it has one value per class, and at least 2 classes;
    values that are no probabilities are taken for logits.
    """
    for name, first in outputs[0].items():
        if first.dtype.kind != "f" or first.ndim < 2 or math.prod(first.shape[1:]) < 2:
            continue
        if math.prod(first.shape[1:]) != max(first.shape[1:]):
            continue
        scores = np.concatenate([np.asarray(o[name], np.float64) for o in outputs])
        scores = scores.reshape(len(scores), -1)
        if not np.isfinite(scores).all():
            continue
        if scores.min() < 0 or abs(scores.sum(axis=1) - 1).max() > 1e-3:
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        return max(0.0, _entropy(scores.mean(axis=0)) - float(np.mean([*map(_entropy, scores)])))
    return 0.0


def _entropy(probabilities: NDArray[np.float64]) -> float:
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log(positive)).sum())
