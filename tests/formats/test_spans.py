"""Where the tensors of a file lie: every format, by comparing with what the libraries read."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.torch import save_file

from dacconv.errors import FormatError
from dacconv.formats import model_files
from dacconv.formats.spans import Span, disjoint, is_contiguous, storage_spans
from tests import cli_nets


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    """The float32 tensors that the spans of a file give."""
    return {
        span.name: np.frombuffer(file.path.read_bytes()[span.start : span.end], np.float32).reshape(
            span.shape
        )
        for file in model_files(path)
        for span in file.spans
        if span.shape is not None and span.dtype == "float32"
    }


def floats(state) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in state.items() if v.is_floating_point() and v.numel()}


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def state():
    return cli_nets.trained().state_dict()


def test_safetensors(state, tmp_path) -> None:
    save_file(dict(state), tmp_path / "net.safetensors")
    assert same(tensors_of(tmp_path / "net.safetensors"), floats(state))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict(state, tmp_path, zipped: bool) -> None:
    path = tmp_path / "net.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert same(tensors_of(path), floats(state))
    assert bool(model_files(path)[0].checksums) == zipped


@pytest.mark.parametrize("zipped", [True, False])
def test_inside_a_checkpoint(state, tmp_path, zipped: bool) -> None:
    path = tmp_path / "net.pth"
    torch.save({"epoch": 3, "net": state}, path, _use_new_zipfile_serialization=zipped)
    assert same(tensors_of(path), {f"net.{k}": v for k, v in floats(state).items()})


def test_a_pickled_module_is_read_without_its_code(tmp_path) -> None:
    path = tmp_path / "net.pt"
    torch.save(cli_nets.trained(), path)
    values = [v for v in tensors_of(path).values() if v.shape == (16, 3, 3, 3)]
    assert np.array_equal(values[0], cli_nets.trained().conv1.weight.detach().numpy())


class _Evil:
    def __reduce__(self):
        return (Path.write_text, (Path("evil.txt"), "run"))


def test_nothing_of_a_pickle_is_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(4, 4), "evil": _Evil()}, tmp_path / "net.pt")
    assert list(tensors_of(tmp_path / "net.pt")) == ["w"]
    assert not Path("evil.txt").exists()


def test_shared_and_strided_storages_are_spans_without_order(tmp_path) -> None:
    whole = torch.arange(24.0)
    state = OrderedDict(a=whole[:12], b=whole[6:], t=torch.ones(2, 3).T, tied=whole[:12])
    torch.save(state, tmp_path / "net.pt")
    spans = model_files(tmp_path / "net.pt")[0].spans
    assert [(span.count, span.shape) for span in spans] == [(24, None), (6, None)]
    halves = OrderedDict(a=whole[:12], b=whole[12:].view(3, 4), tied=whole[:12])
    torch.save(halves, tmp_path / "net.pt")
    spans = model_files(tmp_path / "net.pt")[0].spans
    assert [(span.name, span.shape) for span in spans] == [("a", (12,)), ("b", (3, 4))]


def test_half_floats(tmp_path) -> None:
    state = {"h": torch.ones(3, 2, dtype=torch.float16), "b": torch.ones(5, dtype=torch.bfloat16)}
    torch.save(state, tmp_path / "net.pt")
    save_file(state, tmp_path / "net.safetensors")
    for name in ("net.pt", "net.safetensors"):
        spans = {span.name: span for span in model_files(tmp_path / name)[0].spans}
        assert {k: (s.dtype, s.shape) for k, s in spans.items()} == {
            "h": ("float16", (3, 2)),
            "b": ("bfloat16", (5,)),
        }


def test_a_program(state, tmp_path) -> None:
    program = torch.export.export(cli_nets.trained(), (torch.ones(1, 3, 12, 12),))
    torch.export.save(program, tmp_path / "net.pt2")
    assert same(tensors_of(tmp_path / "net.pt2"), floats(state))


def test_onnx(state, tmp_path) -> None:
    onnx.save(cli_nets.onnx_model(), tmp_path / "net.onnx")
    assert same(tensors_of(tmp_path / "net.onnx"), floats(state))


@pytest.mark.parametrize("one_file", [True, False])
def test_onnx_with_external_data(state, tmp_path, one_file: bool) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(
        cli_nets.onnx_model(),
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=one_file,
        location="net.data" if one_file else None,
        size_threshold=0,
    )
    assert same(tensors_of(path), floats(state))
    assert [file.name for file in model_files(path)][:1] == ["net.onnx"]


def test_onnx_constants_typed_fields_and_subgraphs(tmp_path) -> None:
    typed = helper.make_tensor("typed", 1, [3], [1.0, 2.0, 3.0])
    inner = helper.make_graph(
        [helper.make_node("Identity", ["in_branch"], ["y"])],
        "branch",
        [],
        [helper.make_tensor_value_info("y", 1, [2])],
        [numpy_helper.from_array(np.array([4, 5], np.float32), "in_branch")],
    )
    constant = numpy_helper.from_array(np.eye(3, dtype=np.float32), "constant")
    nodes = [
        helper.make_node("Constant", [], ["c"], value=constant),
        helper.make_node("If", ["flag"], ["z"], then_branch=inner, else_branch=inner),
    ]
    graph = helper.make_graph(nodes, "g", [], [], [typed])
    onnx.save(helper.make_model(graph), tmp_path / "net.onnx")
    values = {name: array.tolist() for name, array in tensors_of(tmp_path / "net.onnx").items()}
    assert values == {"typed": [1, 2, 3], "constant": np.eye(3).tolist(), "in_branch": [4, 5]}


def test_damaged_onnx_is_refused(tmp_path) -> None:
    data = cli_nets.onnx_model().SerializeToString()
    (tmp_path / "net.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match="not a readable ONNX file"):
        model_files(tmp_path / "net.onnx")


def test_spans_that_overlap_or_pass_the_end_are_left_out() -> None:
    spans = [Span("a", 0, 4, "float32"), Span("b", 8, 4, "float32"), Span("c", 16, 2, "float32"),
             Span("d", 30, 1, "float32"), Span("e", 16, 0, "float32")]  # fmt: skip
    assert [span.name for span in disjoint(spans, 32)] == ["a", "c"]


def test_storages_and_strides() -> None:
    assert is_contiguous((2, 1, 3), (3, 99, 1))
    assert not is_contiguous((2, 3), (1, 2))
    assert [s.shape for s in storage_spans(0, 6, "float32", {"a": (0, (2, 3))})] == [(2, 3)]
    assert [s.shape for s in storage_spans(0, 7, "float32", {"a": (0, (2, 3))})] == [None]
    assert [s.shape for s in storage_spans(0, 7, "float32", {})] == [None]
