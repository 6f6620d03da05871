"""Crops of a few photographs that the package carries.

One photograph cropped and changed at random shows a network most of the edges, textures and shades
that real images have (Asano, Rupprecht and Vedaldi, arXiv 1904.13132). The photographs are in the
public domain; see LICENCE.txt beside them.
"""

from __future__ import annotations

import math
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

from dacconv.graph.types import FloatArray

if TYPE_CHECKING:
    from PIL.Image import Image

NAMES = ("astronaut.jpg", "chelsea.jpg", "coffee.jpg", "rocket.jpg")
SMALLEST = 1 / 3
"""The side of the smallest crop, as a share of the largest crop's."""
PASTED = 0.25
"""The share of images with a piece of another photograph in them."""


def photographs(count: int, channels: int, size: tuple[int, ...], seed: int) -> FloatArray:
    """Crops of photographs at random places, sizes, contrasts and colours.

    Returns ``(count, channels, height, width)`` in 0..1, for 1 or 3 channels.
    """
    images = np.empty((count, channels, *size), np.float32)
    for i in range(count):
        images[i] = _crop(i, channels, size, np.random.default_rng([seed, i]))
    return images


def suit(channels: int, size: tuple[int, ...]) -> bool:
    """Whether photographs can stand in for a model's inputs."""
    return channels in (1, 3) and len(size) == 2


def _crop(index: int, channels: int, size: tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    height, width = size
    pixels = _cut(_photograph(NAMES[index % len(NAMES)]), height, width, rng)
    if rng.uniform() < PASTED:
        inner = (
            max(1, int(height * rng.uniform(0.25, 0.5))),
            max(1, int(width * rng.uniform(0.25, 0.5))),
        )
        other = _cut(_photograph(NAMES[int(rng.integers(len(NAMES)))]), *inner, rng)
        top, left = (int(rng.integers(0, n - m + 1)) for n, m in zip(size, inner, strict=True))
        pixels[top : top + inner[0], left : left + inner[1]] = other
    if rng.integers(2):
        pixels = pixels[..., rng.permutation(3)]
    mean = pixels.mean()
    pixels = (pixels - mean) * rng.uniform(0.6, 1.4) + mean + 0.08 * rng.normal()
    if channels == 1:
        pixels = pixels.mean(axis=2, keepdims=True)
    return np.ascontiguousarray(np.clip(pixels, 0, 1).transpose(2, 0, 1), np.float32)


def _cut(photograph: Image, height: int, width: int, rng: np.random.Generator) -> FloatArray:
    """A random part of a photograph, ``(height, width, 3)`` in 0..1, mirrored at random."""
    from PIL.Image import Resampling

    largest = min(photograph.width / width, photograph.height / height)
    factor = largest * math.exp(rng.uniform(math.log(SMALLEST), 0))
    wide, high = factor * width, factor * height
    left = rng.uniform(0, photograph.width - wide) if photograph.width > wide else 0.0
    top = rng.uniform(0, photograph.height - high) if photograph.height > high else 0.0
    box = left, top, min(left + wide, photograph.width), min(top + high, photograph.height)
    part = photograph.resize((width, height), Resampling.BICUBIC, box=box)
    pixels = np.asarray(part, np.float32) / 255
    return np.array(pixels[:, ::-1] if rng.integers(2) else pixels)


@cache
def _photograph(name: str) -> Image:
    from PIL import Image

    source = files("dacconv.calibration.inputs").joinpath("photograph_files", name)
    with source.open("rb") as file:
        return Image.open(file).convert("RGB")
