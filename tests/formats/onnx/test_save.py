"""What is written, and what is not when something goes wrong."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from dacconv.errors import UnsupportedError
from dacconv.formats.base import LoadOptions
from dacconv.formats.onnx import run as onnx_run
from dacconv.formats.onnx import save as onnx_save
from dacconv.formats.onnx.model import OnnxModel, load
from dacconv.graph.types import Choice, Plan
from dacconv.planning.plans import plan_from_json
from dacconv.support.files import WriteError
from tests.onnx_nets import (
    conv_model,
    difference,
    feeds,
    model,
    node,
    opened,
    run,
    save,
    split_all,
    weights,
)

PLAN = Plan((Choice("conv", "dac", (9,)),))
PROVENANCE = {"version": "1", "options": {"b": 2, "a": 1}}


def written(opened_model: OnnxModel, path: Path) -> onnx.ModelProto:
    opened_model.save(path, provenance=PROVENANCE, plan=PLAN)
    return onnx.load(path)


def test_everything_else_is_kept(tmp_path: Path) -> None:
    proto = conv_model(doc_string="a model", producer_name="by hand", producer_version="3")
    proto.domain, proto.model_version = "here", 7
    proto.graph.doc_string = "a graph"
    onnx.helper.set_model_props(proto, {"stride": "32", "names": "{0: 'cat'}"})
    original = opened(proto, tmp_path)
    after = written(split_all(original), tmp_path / "out.onnx")
    onnx.checker.check_model(after, full_check=True)
    for each in ("ir_version", "doc_string", "producer_name", "producer_version", "domain",
                 "model_version", "opset_import"):  # fmt: skip
        assert getattr(after, each) == getattr(proto, each)
    assert after.graph.doc_string == "a graph"
    assert (after.graph.input, after.graph.output) == (proto.graph.input, proto.graph.output)
    told = {p.key: p.value for p in after.metadata_props}
    assert (told["stride"], told["names"]) == ("32", "{0: 'cat'}")
    assert told["dacconv"] == '{"options":{"a":1,"b":2},"version":"1"}'
    assert plan_from_json(told["dacconv_plan"], "x").choices[0].layer == "conv"


def test_saving_twice_replaces_what_was_said(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    written(opened(conv_model(), tmp_path), path)
    again = load(path, LoadOptions())
    again.save(path, provenance={"version": "2"}, plan=Plan(()))
    told = [(p.key, p.value) for p in onnx.load(path).metadata_props]
    assert told == [
        ("dacconv", '{"version":"2"}'),
        ("dacconv_plan", '{"layers":[],"plan_version":2,"skipped":[]}'),
    ]


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    original = opened(conv_model(), tmp_path)
    outs = [tmp_path / "1.onnx", tmp_path / "2.onnx"]
    for path in outs:
        written(split_all(original), path)
    assert outs[0].read_bytes() == outs[1].read_bytes()


def external(folder: Path) -> OnnxModel:
    nodes = [
        node("Conv", ["x", "w", "b"], ["a"], name="conv", pads=[1] * 4),
        node("Conv", ["a", "v"], ["y"], name="grouped", group=4),
    ]
    constants = {"w": weights(16, 4, 3, 3), "b": weights(16), "v": weights(16, 4, 5, 5)}
    path = folder / "net.onnx"
    proto = model(nodes, constants)
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=500)
    return load(path, LoadOptions())


def data_file(path: Path) -> Path:
    """The only data file of a model, which is named after its own bytes."""
    (side,) = path.parent.glob(f"{path.name}.*.data")
    digest = hashlib.sha256(side.read_bytes()).hexdigest()
    assert side.name == f"{path.name}.{digest[:16]}.data"
    return side


def test_external_data_stays_external(tmp_path: Path) -> None:
    original = external(tmp_path)
    rewritten = split_all(original)
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / "small.onnx"
    assert rewritten.side_files(path) == ()
    files = rewritten.save(path, provenance=PROVENANCE, plan=PLAN)
    side = data_file(path)
    assert set(files) == set(folder.iterdir()) == {path, side}
    onnx.checker.check_model(str(path), full_check=True)
    proto = onnx.load(path, load_external_data=False)
    where = {i.name: [e.value for e in i.external_data][:1] for i in proto.graph.initializer}
    assert where["v"] == where["conv_dw.weight"] == [side.name]
    assert where["conv_pw.bias"] == []
    offsets = [int(e.value) for i in proto.graph.initializer for e in i.external_data
               if e.key == "offset"]  # fmt: skip
    assert all(offset % 64 == 0 for offset in offsets)
    inputs = feeds(original)
    again = load(path, LoadOptions())
    assert difference(run(original, inputs), run(again, inputs)) < 1e-5
    session = onnx_run.session(path, threads=1)  # the runtime finds the side file itself
    assert difference(run(original, inputs), onnx_run.runner(session)(inputs)) < 1e-5
    first = [f.read_bytes() for f in sorted(files)]
    rewritten.save(path, provenance=PROVENANCE, plan=PLAN)
    assert first == [f.read_bytes() for f in sorted(files)]


def test_a_model_in_place_of_itself(tmp_path: Path) -> None:
    """The mapped data file is replaced while the model still reads from it."""
    path = tmp_path / "net.onnx"
    onnx.save(conv_model(weights(16, 4, 3, 3)), path, save_as_external_data=True,
              location="net.onnx.data", size_threshold=0)  # fmt: skip
    original = load(path, LoadOptions())
    inputs = feeds(original)
    before = run(original, inputs)
    split_all(original).save(path, provenance={}, plan=PLAN)
    assert difference(before, run(load(path, LoadOptions()), inputs)) < 1e-5
    assert difference(before, run(original, inputs)) == 0


def test_a_model_that_is_too_large_gets_a_side_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = opened(conv_model(weights(16, 4, 3, 3)), tmp_path)
    path = tmp_path / "out.onnx"
    assert original.side_files(path) == ()
    inputs = feeds(original)
    before = run(original, inputs)
    monkeypatch.setattr(onnx_save, "INLINE_LIMIT", 1000)
    monkeypatch.setattr(onnx_run, "INLINE_LIMIT", 1000)
    rewritten = split_all(original)
    assert difference(before, run(rewritten, inputs)) < 1e-5
    assert rewritten.save(path, provenance={}, plan=PLAN) == (path, data_file(path))
    assert path.stat().st_size < 2000
    assert difference(before, run(load(path, LoadOptions()), inputs)) < 1e-5


def test_an_end_between_the_two_renames_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new data has its name and the new graph has not: the old graph keeps its own data."""

    class KilledError(BaseException):
        pass

    original, path = external(tmp_path), tmp_path / "out.onnx"
    original.save(path, provenance={}, plan=PLAN)
    inputs, before = feeds(original), data_file(path)
    rename = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target == path:
            raise KilledError
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KilledError):
            split_all(original).save(path, provenance={}, plan=PLAN)
    assert len(list(tmp_path.glob("out.onnx.*.data"))) == 2
    old = load(path, LoadOptions())
    assert old.files == (path, before)
    assert difference(run(original, inputs), run(old, inputs)) == 0
    split_all(original).save(path, provenance={}, plan=PLAN)
    assert load(path, LoadOptions()).files == (path, data_file(path))
    assert not before.exists()


def test_no_empty_data_file_is_written(tmp_path: Path) -> None:
    """All external weights were split into smaller ones, which go into the model."""
    proto = conv_model(weights(4, 2, 3, 3))
    onnx.save(proto, tmp_path / "net.onnx", save_as_external_data=True, location="w",
              size_threshold=100)  # fmt: skip
    original = load(tmp_path / "net.onnx", LoadOptions())
    path = tmp_path / "out.onnx"
    assert split_all(original).save(path, provenance={}, plan=PLAN) == (path,)
    assert onnx_save.data_files(path) == ()


def test_other_weights_have_another_data_file_and_the_old_one_goes(tmp_path: Path) -> None:
    original, path = external(tmp_path), tmp_path / "out.onnx"
    original.save(path, provenance={}, plan=PLAN)
    before = data_file(path)
    others = [tmp_path / name for name in ("out.onnx.data", "out.onnx.12.data", "b.onnx.data")]
    for other in others:
        other.write_text("not ours")
    assert original.replaced_files(path) == (before,)
    split_all(original).save(path, provenance={}, plan=PLAN)
    assert not before.exists()
    assert [other.read_text() for other in others] == ["not ours"] * 3
    for other in others[:2]:
        other.unlink()
    assert load(path, LoadOptions()).files == (path, data_file(path))


@pytest.mark.parametrize("kind", ["inline", "external"])
def test_a_full_disk_leaves_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = external(tmp_path) if kind == "external" else opened(conv_model(), tmp_path)
    folder = tmp_path / "out"
    folder.mkdir()

    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(onnx_save, "write", full)
    with pytest.raises(WriteError, match="No space left"):
        original.save(folder / "out.onnx", provenance={}, plan=PLAN)
    assert list(folder.iterdir()) == []


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    original = opened(conv_model(), tmp_path)
    with pytest.raises(WriteError):
        original.save(tmp_path / "nowhere" / "out.onnx", provenance={}, plan=PLAN)


def test_the_runtime_says_why_it_refuses(tmp_path: Path) -> None:
    nodes = [node("Mystery", ["x"], ["y"], domain="custom")]
    original = opened(model(nodes, {}, imports=[("custom", 1)]), tmp_path)
    with pytest.raises(UnsupportedError, match=r"ONNX Runtime does not take the model: .*Mystery"):
        original.runner()
    fine = opened(conv_model(), tmp_path).runner(threads=1)
    with pytest.raises(UnsupportedError, match="cannot run the model"):
        fine({"x": np.zeros((1, 5, 9, 8), np.float32)})
    with pytest.raises(UnsupportedError, match="input 'x' is missing"):
        fine({})


def test_without_optimisation(tmp_path: Path) -> None:
    original = opened(conv_model(), tmp_path)
    inputs = feeds(original)
    plain = onnx_run.runner(original.session(threads=1, optimise=False))
    assert difference(run(original, inputs), plain(inputs)) < 1e-5


def test_initializers_are_not_asked_for(tmp_path: Path) -> None:
    original = opened(conv_model(ir=3, opset=8, constants_as_inputs=True), tmp_path)
    inputs = feeds(original)
    assert list(inputs) == ["x"]
    run(original, inputs)


def test_typed_data_is_written_as_it_was(tmp_path: Path) -> None:
    proto = conv_model(bias=False)
    values = weights(6, 4, 3, 3)
    proto.graph.initializer[0].CopyFrom(
        onnx.helper.make_tensor("conv.weight", 1, values.shape, values.reshape(-1))
    )
    original = opened(proto, tmp_path)
    np.testing.assert_array_equal(original.conv("conv").weight, values)
    assert written(original, tmp_path / "o.onnx").graph.initializer == proto.graph.initializer
    path = save(proto, tmp_path)
    assert load(path, LoadOptions()).files == (path,)


def test_converting_loads_neither_torch_nor_the_runtime(tmp_path: Path) -> None:
    path = save(conv_model(), tmp_path)
    code = f"""
import sys
from pathlib import Path
from dacconv.formats.base import LoadOptions
from dacconv.formats.onnx.model import load
from dacconv.graph.types import Plan, Rewrite
model = load(Path({str(path)!r}), LoadOptions())
(node,) = model.graph().nodes
new = model.rewrite([Rewrite(node.name, "x", ((model.conv(node.name),),))])
new.save(Path({str(tmp_path / "out.onnx")!r}), provenance={{}}, plan=Plan(()))
print(sorted({{"torch", "onnxruntime", "onnx_ir", "scipy"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
