"""The modules that time models and layers have the type that they are used as."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from dacconv.formats import TIMED, timing_adapter
from dacconv.formats.timing import TimingAdapter
from dacconv.graph.types import Conv

MEMBERS = [name for name in vars(TimingAdapter) if not name.startswith("_")]


@pytest.mark.parametrize("kind", TIMED)
@pytest.mark.parametrize("name", MEMBERS)
def test_an_adapter_has_every_function_with_its_parameters(kind, name) -> None:
    wanted = [p for p in inspect.signature(getattr(TimingAdapter, name)).parameters if p != "self"]
    assert list(inspect.signature(getattr(timing_adapter(kind), name)).parameters) == wanted


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_layer_runs_as_it_is_and_split(kind) -> None:
    adapter = timing_adapter(kind)
    conv = Conv(np.ones((4, 8, 3, 3), np.float32), None, (1, 1), ((1, 1), (1, 1)), (1, 1))
    first = Conv(np.ones((2, 8, 3, 1), np.float32), None, (1, 1), ((1, 1), (0, 0)), (1, 1))
    last = Conv(np.ones((4, 2, 1, 3), np.float32), None, (1, 1), ((0, 0), (1, 1)), (1, 1))
    for branches in (None, ((first, last),)):
        with adapter.layer_runner(conv, (1, 8, 6, 6), branches, threads=1, device="cpu") as run:
            run()
    overhead = adapter.layer_overhead(conv, (1, 8, 6, 6), threads=1, seconds=1.0)
    assert (0 < overhead < 1) == (kind == "onnx")
    assert adapter.device_name("cpu") == "cpu"
