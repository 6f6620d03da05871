"""Synthetic images with the statistics of natural images, generated from a seed.

``dead_leaves``: opaque shapes of many sizes and colours that occlude each other. Sizes follow a
power law, so that edges occur at all scales (Lee, Mumford and Huang 2001, "Occlusion models
for natural images"). ``clouds``: random fields with a 1/f spectrum, cut by level sets. They
have the same second-order statistics as dead leaves but other shapes, so that they can judge
factors that were fitted to dead leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dacconv.graph.types import FloatArray

Family = Callable[[int, int, tuple[int, ...], int], FloatArray]
"""``(count, channels, size, seed)`` to images ``(count, channels, *size)`` in 0..1, float32."""

NOISE = 0.2
"""Standard deviation of the strongest noise: 50 of 255, the most that denoisers are trained on."""
MAX_SHAPES = 250
"""The most shapes per image; pixels that no shape covers keep the background's colour."""


def dead_leaves(count: int, channels: int, size: tuple[int, ...], seed: int) -> FloatArray:
    """Images of occluding discs and boxes, shaded and textured.

    Sizes up to 64 are drawn at twice the size and averaged, so that edges are smooth.
    """
    return np.stack(
        [_leaves(channels, size, np.random.default_rng([seed, i])) for i in range(count)]
    )


def clouds(count: int, channels: int, size: tuple[int, ...], seed: int) -> FloatArray:
    """Random fields with a 1/f amplitude spectrum and edges where they cross random levels."""
    return np.stack(
        [_cloud(channels, size, np.random.default_rng([seed, i])) for i in range(count)]
    )


def noisy(images: FloatArray, seed: int) -> FloatArray:
    """Images in 0..1 with Gaussian noise, of a random strength up to ``NOISE`` per image."""
    rng = np.random.default_rng(seed)
    strengths = rng.uniform(0, NOISE, (len(images), *(1,) * (images.ndim - 1)))
    return np.asarray(images + strengths * rng.standard_normal(images.shape), np.float32)


FAMILIES: dict[str, Family] = {"dead leaves": dead_leaves, "clouds": clouds}


def _leaves(channels: int, size: tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    height, width = size if len(size) == 2 else (1, math.prod(size))
    scale = 2 if max(height, width) <= 64 else 1
    high, wide = height * scale, width * scale
    image = np.zeros((channels, high, wide), np.float32)
    free = np.ones((high, wide), bool)
    base = rng.uniform(0.15, 0.85, channels)
    spread = rng.uniform(0.1, 0.45)
    longest = max(high, wide)
    finest = max(2.0 * scale, longest / 50)
    small, large = finest**-1.5, (0.6 * longest) ** -1.5
    for _ in range(MAX_SHAPES):
        radius = (small + (large - small) * rng.uniform()) ** (-1 / 1.5)
        _draw(image, free, rng, radius, base + spread * _colour(channels, rng))
        if free.mean() < 0.002:
            break
    image[:, free] = base[:, None]
    if scale > 1:
        image = image.reshape(channels, height, scale, width, scale).mean(axis=(2, 4))
    image += rng.normal(size=image.shape) * rng.uniform(0, 0.03)
    return np.clip(image, 0, 1).astype(np.float32).reshape(channels, *size)


def _colour(channels: int, rng: np.random.Generator) -> FloatArray:
    """A random colour: mostly a brightness that the channels share, and some hue."""
    return np.asarray(0.75 * rng.normal() + 0.5 * rng.normal(size=channels))


def _draw(
    image: FloatArray,
    free: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    rng: np.random.Generator,
    radius: float,
    colour: FloatArray,
) -> None:
    """Draw one random shape into the pixels that are still free, and mark them as taken."""
    high, wide = free.shape
    x, y = rng.uniform(-0.2, 1.2) * wide, rng.uniform(-0.2, 1.2) * high
    turn, squash, box = rng.uniform(0, math.pi), rng.uniform(0.4, 1), rng.uniform() < 0.4
    tilt = rng.normal(size=2) * rng.uniform(0, 0.3) / radius
    wave = rng.normal() * 0.06, rng.uniform(0.2, 2.5), rng.uniform(0, 6)
    reach = 1.5 * radius if box else radius
    top, left = max(0, math.floor(y - reach)), max(0, math.floor(x - reach))
    window = (slice(top, max(top, math.ceil(y + reach) + 1)),
              slice(left, max(left, math.ceil(x + reach) + 1)))  # fmt: skip
    inside = free[window]
    if not inside.any():
        return
    dy, dx = np.mgrid[top : top + inside.shape[0], left : left + inside.shape[1]]
    dy, dx = dy - y, dx - x
    along = dx * math.cos(turn) + dy * math.sin(turn)
    across = (dy * math.cos(turn) - dx * math.sin(turn)) / squash
    if box:
        mask = np.maximum(abs(along), abs(across)) < radius
    else:
        mask = along**2 + across**2 < radius**2
    mask &= inside
    shade = dx * tilt[0] + dy * tilt[1] + wave[0] * np.sin(along * wave[1] + wave[2])
    image[:, *window][:, mask] = np.clip(colour, 0, 1)[:, None] + shade[mask]
    free[window] &= ~mask


def _cloud(channels: int, size: tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    shared = _field(size, rng, rng.uniform(0.8, 1.4))
    layers = [0.8 * shared + 0.6 * _field(size, rng, 1.2) for _ in range(channels)]
    image = 0.5 + rng.uniform(0.08, 0.25) * np.stack(layers)
    for _ in range(int(rng.integers(1, 5))):
        mask = _field(size, rng, rng.uniform(1.2, 2.0)) > rng.uniform(-0.8, 1.2)
        image[:, mask] += rng.uniform(0.1, 0.35) * _colour(channels, rng)[:, None]
    return np.clip(image, 0, 1).astype(np.float32)


def _field(size: tuple[int, ...], rng: np.random.Generator, power: float) -> FloatArray:
    """A field of zero mean and unit variance with amplitudes ``f ** -power``."""
    axes = [np.fft.fftfreq(n) for n in size]
    grid = np.meshgrid(*axes, indexing="ij")
    frequency = np.sqrt(sum(g**2 for g in grid))
    frequency[(0,) * len(size)] = math.inf
    noise = np.fft.fftn(rng.standard_normal(size))
    field = np.fft.ifftn(noise * frequency**-power).real
    return np.asarray(field / max(float(field.std()), 1e-12))
