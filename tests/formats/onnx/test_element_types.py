"""Element types that few models have: refused, or the layer is left alone, with a reason."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import fuzz_mutants
import numpy as np
import onnx
import pytest
from onnx import TensorProto

from dacconv import convert, load, plan, survey
from dacconv.errors import DacconvError

TYPES = ["STRING", "BFLOAT16", "COMPLEX64", "UINT4", "INT4", "FLOAT8E4M3FN", "FLOAT8E5M2",
         "FLOAT4E2M1"]  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_an_input(tmp_path: Path, name: str) -> None:
    model = fuzz_mutants.conv_net()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DataType.Value(name)
    onnx.save(model, tmp_path / "a.onnx")
    opened = load(tmp_path / "a.onnx")
    assert survey(opened)
    assert convert(opened, plan(opened, rank=1))
    with pytest.raises(DacconvError) as caught:
        opened.runner()
    assert "a.onnx" in str(caught.value) or "ONNX Runtime" in str(caught.value)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("weight", ["w1", "b1", "n0"])
def test_a_weight(tmp_path: Path, name: str, weight: str) -> None:
    model = fuzz_mutants.conv_net()
    tensor = next(each for each in model.graph.initializer if each.name == weight)
    tensor.data_type = TensorProto.DataType.Value(name)
    count = int(np.prod(tensor.dims))
    tensor.ClearField("raw_data")
    if name == "STRING":
        tensor.string_data.extend([b"a"] * count)
    else:
        size = 8 if name == "COMPLEX64" else 2 if name == "BFLOAT16" else 1
        tensor.raw_data = b"\x11" * (
            (count + 1) // 2 if name.endswith(("4", "E2M1")) else count * size
        )
    onnx.save(model, tmp_path / "a.onnx")
    with suppress(DacconvError):  # one message; anything else is a fault
        opened = load(tmp_path / "a.onnx")
        convert(opened, plan(opened, rank=1))
