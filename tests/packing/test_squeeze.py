"""zstd with known sizes, and byte planes."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dacconv.packing.entropy import PackedError
from dacconv.packing.squeeze import expand, from_planes, squeeze, to_planes


@given(st.binary(max_size=400), st.sampled_from([2, 4, 8]))
def test_planes_come_back_bit_for_bit(data: bytes, width: int) -> None:
    data = data[: len(data) // width * width]
    facts, packed = to_planes(data, width)
    assert from_planes(facts, packed, len(data)) == data


@pytest.mark.parametrize(("dtype", "ratio"), [("float32", 1.15), ("bfloat16", 1.45)])
def test_planes_of_trained_weights_take_less_room(dtype: str, ratio: float) -> None:
    import ml_dtypes

    weights = np.random.default_rng(0).standard_normal(100_000).astype(np.float32) / 30
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    data = weights.astype(kind).tobytes()
    _, packed = to_planes(data, np.dtype(kind).itemsize)
    assert len(data) > ratio * len(packed)


def test_a_frame_of_another_size_is_refused() -> None:
    data = squeeze(b"0" * 100)
    assert expand(data, 100) == b"0" * 100
    for length in (0, 99, 101):
        with pytest.raises(PackedError, match="unpacks to 100 bytes"):
            expand(data, length)


def test_a_frame_that_states_no_size_is_refused() -> None:
    stream = zstandard.ZstdCompressor(write_content_size=False)
    with pytest.raises(PackedError):
        expand(stream.compress(bytes(1 << 20)), 100)


@pytest.mark.parametrize("change", [lambda d: d[:-3], lambda d: d + b"more", lambda d: b"x" + d])
def test_a_damaged_frame_is_refused(change) -> None:
    with pytest.raises(PackedError):
        expand(change(squeeze(bytes(range(256)))), 256)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"width": 3, "planes": [["raw", 5]] * 3},
        {"width": True, "planes": [["raw", 16]]},
        {"width": 4, "planes": [["raw", 4]] * 3},
        {"width": 4, "planes": [["raw", 4], ["raw", 4], ["raw", 4], ["raw", 9]]},
        {"width": 4, "planes": [["raw", 4], ["raw", 4], ["raw", 4], ["zstd", 4]]},
        {"width": 4, "planes": [["raw", 4], ["raw", 4], ["raw", 4], ["range", 4]]},
        {"width": 4, "planes": [["raw", 4], ["raw", 4], ["raw", 4], ["other", 4]]},
        {"width": 4, "planes": [["raw", 4], ["raw", 4], ["raw", 4], ["raw", -4]]},
        {"width": 4, "planes": [["raw", 4], ["raw", 4], ["raw", 4], ["raw", True]]},
        {"width": 4, "planes": [["raw", 4], ["raw", 4], ["raw", 4], ["raw", 1 << 70]]},
    ],
)
def test_damaged_planes_are_refused(facts) -> None:
    with pytest.raises(PackedError):
        from_planes(facts, bytes(16), 16)
