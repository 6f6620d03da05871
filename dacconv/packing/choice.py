"""How finely each weight is rounded, and the files with the rounded weights in them.

One number, the strength, decides for all layers: the damage that one bit less may do. Where the
levels of a layer are a step of ``s`` apart, its damage is ``m s^2 / 12`` for each weight, relative
to the size of its output, and a bit less makes that four times as much. So the steps that spend a
given number of bytes with the least damage in all are those with the same ``m s^2`` everywhere.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dacconv.formats.spans import ModelFile
from dacconv.packing.levels import MOST_LEVELS, Levels, dtype_of, nearest_steps, scales
from dacconv.packing.rounding import F64, bits_of, damage, rounded
from dacconv.packing.weights import Place, Weight

BIT = 12 / (2 * math.log(2))
"""The square of a step over the strength, of a weight whose errors do a damage of 1."""


@dataclass(frozen=True, slots=True)
class RoundedRow:
    """What rounding did to one weight: its numbers, bits per number, levels, and the damage.

    ``damage`` is the squared error of the layer's output over the output's own square, on the
    inputs that were measured; None where nothing was measured.
    """

    name: str
    count: int
    bits: float
    levels: int
    zeros: float
    damage: float | None


@dataclass(frozen=True, slots=True, eq=False)
class RoundedModel:
    """The bytes of a model's files with rounded weights, and the levels by their places."""

    contents: tuple[bytes, ...]
    levels: Mapping[Place, Levels]
    rows: tuple[RoundedRow, ...]


def steps_by_bits(weights: Sequence[Weight], bits: int) -> list[float]:
    """The steps with which each weight has at most ``2 ** bits`` levels and none is cut off."""
    half = (2**bits - 1) // 2
    return [_largest(weight) / half for weight in weights]


def steps_by_strength(weights: Sequence[Weight], strength: float) -> list[float]:
    """The steps of equal damage per bit; at least so large that the levels are few enough."""
    steps = []
    for weight in weights:
        if weight.metric is not None:
            share = weight.metric.power / weight.metric.weight
        else:
            share = float(((weight.kernel * weight.gains[:, None]) ** 2).sum())
        finest = _largest(weight) / (MOST_LEVELS // 2 - 1)
        steps.append(max(math.sqrt(BIT * strength * share), finest, 1e-30))
    return steps


def estimated_bits(weights: Sequence[Weight], steps: Sequence[float]) -> float:
    """About the bits that the weights take, without the work of rounding them well."""
    total = 0.0
    for weight, step in zip(weights, steps, strict=True):
        plain = rounded(weight.kernel, None, step, weight.gains, MOST_LEVELS)
        total += bits_of(plain.indices)
    return total


def round_model(
    files: Sequence[ModelFile],
    contents: Sequence[bytes],
    weights: Sequence[Weight],
    steps: Sequence[float],
) -> RoundedModel:
    """The model with every weight rounded by its step; all other bytes stay, but for checksums."""
    changed = [bytearray(content) for content in contents]
    levels: dict[Place, Levels] = {}
    rows = []
    for weight, step in zip(weights, steps, strict=True):
        made = rounded(weight.kernel, weight.metric, step, weight.gains, MOST_LEVELS)
        rows.append(_row(weight, made))
        if weight.swapped:
            made = replace(
                made,
                indices=np.ascontiguousarray(made.indices.T),
                row_steps=np.zeros(made.indices.shape[1], np.int8),
                column_steps=made.row_steps,
            )
        data = made.values(weight.span.dtype).tobytes()
        for file, start in weight.places:
            changed[file][start : start + len(data)] = data
            levels[file, start] = made
    for each, content in zip(files, changed, strict=True):
        mend(each, content)
    return RoundedModel(tuple(map(bytes, changed)), levels, tuple(rows))


def mend(file: ModelFile, content: bytearray) -> None:
    """Compute the checksums in a file again."""
    view = memoryview(content)
    for check in file.checksums:
        value = zlib.crc32(view[check.start : check.start + check.length]).to_bytes(4, "little")
        for place in check.places:
            content[place : place + 4] = value


def with_few_values(
    files: Sequence[ModelFile], contents: Sequence[bytes], weights: Sequence[Weight], count: int
) -> RoundedModel:
    """The model with ``count`` equally spaced values in each weight, from its least to its largest.

    That is what onnx-shrink-ray's ``float_quantize`` does: the file is as large as before, and
    gzip makes it several times smaller.
    """
    changed = [bytearray(content) for content in contents]
    rows = []
    for weight in weights:
        low, high = float(weight.kernel.min()), float(weight.kernel.max())
        step = (high - low) / (count - 1) or 1.0
        whole = np.rint(weight.kernel / step)
        values = (whole * step).astype(dtype_of(weight.span.dtype))
        data = np.ascontiguousarray(values.T if weight.swapped else values).tobytes()
        for file, start in weight.places:
            changed[file][start : start + len(data)] = data
        indices = (whole - whole.min()).astype(np.int32)
        used = np.unique(indices)
        bits = bits_of(indices) / indices.size
        error = _damage(weight, values.astype(np.float64))
        zeros = float((whole == 0).mean())
        rows.append(RoundedRow(weight.name, indices.size, bits, len(used), zeros, error))
    for each, content in zip(files, changed, strict=True):
        mend(each, content)
    return RoundedModel(tuple(map(bytes, changed)), {}, tuple(rows))


def _largest(weight: Weight) -> float:
    """The largest number of a weight in units of its rows' scales."""
    gains = np.where(weight.gains > 0, weight.gains, 1.0)
    row_scales = scales(nearest_steps(1 / gains)).astype(np.float64)[:, None]
    return float(np.abs(weight.kernel / row_scales).max(initial=0.0)) or 1.0


def _row(weight: Weight, levels: Levels) -> RoundedRow:
    values = levels.values("float64")
    return RoundedRow(
        name=weight.name,
        count=levels.indices.size,
        bits=bits_of(levels.indices) / levels.indices.size,
        levels=len(np.unique(levels.indices)),
        zeros=float((levels.multiples[levels.indices] == 0).mean()),
        damage=_damage(weight, values),
    )


def _damage(weight: Weight, values: F64) -> float | None:
    if weight.metric is None:
        return None
    gains = weight.gains[:, None]
    return damage(weight.kernel * gains, values * gains, weight.metric)
