"""Networks that others trained and exported, split exactly and run in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from dacconv.formats.base import LoadOptions
from dacconv.formats.onnx.model import load
from dacconv.graph.types import Plan
from tests.onnx_nets import difference, feeds, run, split_all

# file -> convs, dense ones with a kernel above 1x1, affines, notable names
FILES = {
    "cntk_mnist.onnx": (2, 2, 3, "Convolution28"),
    "mnist_external/mnist.onnx": (3, 2, 0, "node_Conv_0"),
    "open_nsfw.onnx": (53, 17, 213, "/Conv_2"),
    "ultraface_rfb_320.onnx": (52, 10, 39, "base_net.7.branch1.1.conv"),
    "ultraface_slim_320.onnx": (42, 3, 29, "base_net.0.0"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_real_network(name: str, shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "onnx" / name
    convs, dense, affines, notable = FILES[name]
    original = load(path, LoadOptions())
    graph = original.graph()
    found = [n for n in graph.nodes if n.op == "conv"]
    assert len(found) == convs
    assert all(n.skip is None for n in found)
    assert all(n.geometry is not None and n.geometry.output_size for n in found)
    wide = [
        n for n in found
        if n.geometry is not None and n.geometry.groups == 1 and max(n.geometry.kernel) > 1
    ]  # fmt: skip
    assert len(wide) == dense
    assert sum(n.op == "affine" for n in graph.nodes) == affines
    assert notable in [n.name for n in found]
    rewritten = split_all(original)
    out = tmp_path / "out.onnx"
    rewritten.save(out, provenance={}, plan=Plan(()))
    onnx.checker.check_model(str(out))
    inputs = feeds(original)
    assert difference(run(original, inputs), run(load(out, LoadOptions()), inputs)) < 1e-5
    before = onnx.load(path, load_external_data=False)
    after = onnx.load(out, load_external_data=False)
    assert after.opset_import == before.opset_import
    assert after.ir_version == before.ir_version
    assert after.graph.output == before.graph.output
    assert _fed(after) == _fed(before)


def _fed(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that are no weights."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in weights]
