"""Tensors of few values: coded and decoded to the same bits, and refused where damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dacconv.packing.entropy import PackedError
from dacconv.packing.levels import Levels, from_levels, nearest_steps, scales, to_levels


def levels_of(seed: int, rows: int, groups: int, taps: int, count: int) -> Levels:
    rng = np.random.default_rng(seed)
    indices = rng.binomial(count - 1, rng.random((rows, 1)), (rows, groups * taps))
    return Levels(
        indices.astype(np.int32),
        float(np.float32(rng.random() + 1e-3)),
        (np.arange(count) - count // 2).astype(np.int32),
        rng.integers(-9, 9, rows).astype(np.int8),
        rng.integers(-9, 9, groups).astype(np.int8),
    )


@given(
    st.integers(0, 1 << 30),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 70),
    st.sampled_from(["float32", "float64", "float16", "bfloat16"]),
)
def test_they_come_back_bit_for_bit(seed, rows, groups, taps, count, dtype) -> None:
    tensors = [(levels_of(seed, rows, groups, taps, count), dtype),
               (levels_of(seed + 1, groups, rows, 1, count), "float32")]  # fmt: skip
    facts, data = to_levels(tensors)
    facts = json.loads(json.dumps(facts))
    expected = [levels.values(dtype).tobytes() for levels, dtype in tensors]
    assert from_levels(facts, data, [len(each) for each in expected]) == expected


def test_values_are_level_times_scales() -> None:
    levels = levels_of(0, 5, 4, 3, 9)
    rows = 2.0 ** (levels.row_steps / 4)
    columns = np.repeat(2.0 ** (levels.column_steps / 4), 3)
    expected = levels.step * levels.multiples[levels.indices] * rows[:, None] * columns
    assert np.allclose(levels.values("float32"), expected, rtol=1e-6)


def test_steps_are_the_nearest_quarters_of_an_octave() -> None:
    values = np.array([1.0, 2.0, 0.5, 1.2, 0.0, np.inf, 1e-30])
    assert nearest_steps(values).tolist() == [0, 4, -4, 1, 0, 0, -127]
    assert np.allclose(scales(np.array([0, 4, -4, 1], np.int8)), [1, 2, 0.5, 2**0.25])


def test_rows_of_different_widths_are_coded_with_less_than_their_common_entropy() -> None:
    rng = np.random.default_rng(0)
    wide = np.repeat(np.array([1.0, 12.0]), 32)
    values = np.rint(rng.standard_normal((64, 400)) * wide[:, None]).astype(np.int32)
    low, high = values.min(), values.max()
    zeros = np.zeros(64, np.int8), np.zeros(400, np.int8)
    levels = Levels(values - low, 1.0, np.arange(low, high + 1, dtype=np.int32), *zeros)
    _, data = to_levels([(levels, "float32")])
    shares = np.bincount((values - low).ravel()) / values.size
    shares = shares[shares > 0]
    assert 8 * len(data) < 0.93 * -(shares * np.log2(shares)).sum() * values.size


@given(st.data())
def test_damage_is_refused_or_gives_as_many_bytes(data) -> None:
    levels = levels_of(3, 4, 3, 3, 11)
    facts, packed = to_levels([(levels, "float32")])
    changed = bytearray(packed)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    cut = changed[: data.draw(st.integers(0, len(changed)))]
    for damaged in (bytes(changed), bytes(cut)):
        try:
            (result,) = from_levels(facts, damaged, [4 * 36])
        except PackedError:
            continue
        assert len(result) == 4 * 36


@pytest.mark.parametrize(
    "entry",
    [
        ["float32", 4, 9, 3, 1 << 20, 1],
        ["float32", 4, 9, 3, 11, 99],
        ["float32", 4, 9, 2, 11, 1],
        ["float32", 0, 9, 3, 11, 1],
        ["float32", 4, 9, 3, 11, True],
        ["int8", 4, 9, 3, 11, 1],
        ["float32", 1 << 40, 1 << 20, 1, 11, 1],
        ["float32", 4, 9, 3, 11],
    ],
)
def test_sizes_that_cannot_be_are_refused(entry) -> None:
    facts, packed = to_levels([(levels_of(3, 4, 3, 3, 11), "float32")])
    with pytest.raises(PackedError):
        from_levels({**facts, "tensors": [entry]}, packed, [4 * 36])


@pytest.mark.parametrize("side", [[-1, 10], [10**9, 10], [5, 5], [True, 1], [0, 1 << 60]])
def test_side_information_of_another_size_is_refused(side) -> None:
    facts, packed = to_levels([(levels_of(3, 4, 3, 3, 11), "float32")])
    with pytest.raises(PackedError):
        from_levels({**facts, "side": side}, packed, [4 * 36])


def test_values_that_overflow_are_infinite_without_a_warning() -> None:
    ones = np.full(1, 127, np.int8)
    levels = Levels(np.array([[0, 1]], np.int32), 3e38, np.array([-9, 9], np.int32), ones, ones)
    assert np.isinf(levels.values("float16")).all()


def test_a_bomb_of_tables_takes_no_memory() -> None:
    """Small tensors that claim large tables."""
    entry = ["float32", 1, 1, 1, 4096, 16]
    part = 4 + 4 * 4096 + 1 + 1 + 1 + 1 + 2 * 15 + 2 * 4096 * 16
    facts = {"tensors": [entry] * 100_000, "side": [0, 100_000 * part]}
    with pytest.raises(PackedError, match="larger than it may be"):
        from_levels(facts, b"", [4] * 100_000)
