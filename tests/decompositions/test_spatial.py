"""The spatial split in both orders: exact at full rank, and what each conv keeps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacconv.decompositions import METHODS
from dacconv.graph.types import Conv, Geometry, Layer

VERTICAL, HORIZONTAL = METHODS["spatial"], METHODS["spatial-horizontal"]


def test_who_keeps_what() -> None:
    conv = Conv(
        np.ones((4, 3, 3, 5)), np.arange(4.0), (2, 1), ((0, 1), (2, 3)), (1, 2), pad_mode="reflect"
    )
    geometry = Geometry(3, 4, (3, 5), (2, 1), (1, 2), 1, True, None, None)
    for method, first_axis in ((VERTICAL, 0), (HORIZONTAL, 1)):
        factors = tuple(np.zeros(shape) for shape in method.formula.shapes(geometry, (2,)))
        ((first, second),) = method.chain(conv, factors)
        for part, axis in ((first, first_axis), (second, 1 - first_axis)):
            other = 1 - axis
            assert part.kernel[axis] == conv.kernel[axis]
            assert part.kernel[other] == 1
            assert part.stride[axis], part.stride[other] == (conv.stride[axis], 1)
            assert part.padding[axis] == conv.padding[axis]
            assert part.padding[other] == (0, 0)
            assert part.dilation[axis], part.dilation[other] == (conv.dilation[axis], 1)
            assert part.pad_mode == "reflect"
        assert first.bias is None
        assert second.bias is conv.bias
        assert first.out_channels == second.in_channels == 2


@pytest.mark.parametrize("kernel", [(1, 7), (512, 1)])
def test_a_kernel_of_one_axis_is_refused(kernel: tuple[int, int]) -> None:
    geometry = Geometry(8, 8, kernel, (1, 1), (1, 1), 1, False, None, None)
    for method in (VERTICAL, HORIZONTAL):
        assert "one axis" in (method.refuses(Layer("a", "conv", ("a",), (geometry,))) or "")


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_the_discarded_values_are_the_kernel_error(out: int, channels: int, seed: int) -> None:
    kernel = np.random.default_rng(seed).standard_normal((1, out, channels, 3, 2))
    for method in (VERTICAL, HORIZONTAL):
        decomposition = method.decompose(kernel)
        (full,) = decomposition.full_rank
        for rank in range(1, full + 1):
            left = kernel - method.formula.recompose(decomposition.factors(kernel, (rank,)))
            measured = np.linalg.norm(left) / np.linalg.norm(kernel)
            assert measured == pytest.approx(decomposition.relative_error((rank,)), abs=1e-9)
