from __future__ import annotations

import numpy as np
import torch
from conv_reference import convolve
from hypothesis import given, settings
from hypothesis import strategies as st

from dacconv.graph.types import Conv


@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_the_patches_are_those_of_a_conv(kernel, stride, dilation, pads, bias, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, 2, 11, 9)).astype(np.float32)
    weight = rng.standard_normal((4, 2, *kernel)).astype(np.float32)
    shift = rng.standard_normal(4).astype(np.float32) if bias else None
    conv = Conv(weight, shift, stride, ((pads[0], pads[1]), (pads[2], pads[3])), dilation)
    padded = torch.nn.functional.pad(torch.from_numpy(x), (pads[2], pads[3], pads[0], pads[1]))
    expected = torch.nn.functional.conv2d(
        padded, torch.from_numpy(weight), None if shift is None else torch.from_numpy(shift),
        stride, 0, dilation,
    )  # fmt: skip
    np.testing.assert_allclose(convolve(conv, x), expected.numpy(), atol=1e-4)


def test_automatic_and_other_padding():
    x = np.random.default_rng(0).standard_normal((1, 1, 7, 8)).astype(np.float32)
    weight = np.ones((1, 1, 3, 3), np.float32)
    same = Conv(weight, None, (2, 2), ((0, 0), (0, 0)), (1, 1), auto_pad="SAME_UPPER")
    assert convolve(same, x).shape == (1, 1, 4, 4)
    mirror = Conv(weight, None, (1, 1), ((1, 1), (1, 1)), (1, 1), pad_mode="reflect")
    module = torch.nn.Conv2d(1, 1, 3, padding=1, bias=False, padding_mode="reflect")
    module.weight.data = torch.from_numpy(weight)
    expected = module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(convolve(mirror, x), expected, atol=1e-5)
    cropped = Conv(weight, None, (1, 1), ((-1, 0), (0, -2)), (1, 1))
    assert convolve(cropped, x).shape == (1, 1, 4, 4)
