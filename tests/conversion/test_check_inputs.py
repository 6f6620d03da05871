"""Two models are compared on the user's images, on images drawn for the model, or on noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import dacconv
from dacconv.calibration.inputs.pixels import InputOptions
from dacconv.calibration.inputs.user_data import read_images, with_labels
from dacconv.conversion.check_inputs import (
    DRAWN,
    MOST,
    NOISE,
    default_samples,
    drawn_inputs,
    model_inputs,
    user_inputs,
)
from dacconv.conversion.verification import verify
from dacconv.errors import UsageError


def conv_net(folder: Path, shape: list[object], channels: int = 3, op: str = "Relu") -> Path:
    """A conv with ``op`` after it, as ONNX."""
    weight = np.random.default_rng(0).normal(size=(8, channels, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node(op, ["c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", 1, None)], [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    path = folder / f"{op}.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path
    )
    return path


def inputs(path: Path, samples: int = 6, **options):
    model = dacconv.load(path)
    return next(model_inputs(model, model.runner(), samples, 0, InputOptions(**options)))


def test_images_are_drawn_at_the_scale_of_the_model(nets):
    found = inputs(nets / "net.onnx", range=(0.0, 255.0))
    assert (found.kind, found.family) == (DRAWN, "dead leaves, photographs and clouds")
    images = np.concatenate([feeds["image"] for feeds in found.batches])
    assert images.shape == (6, 3, 12, 12)
    assert 100 < images.max() <= 255.0 * 1.01
    assert "the input is scaled as the options say" in found.notes
    assert "the first BatchNorm implies" in inputs(nets / "net.onnx").notes[0]


@pytest.mark.parametrize("shape", [["N", 3, 700, 300], [4, 3, 9, 9], [1, 3, 1, 2]])
def test_images_of_any_size_and_batch(tmp_path, shape):
    found = inputs(conv_net(tmp_path, shape))
    fixed = [1 if size == "N" else size for size in shape]
    assert [feeds["x"].shape for feeds in found.batches] == [tuple(fixed)] * (-(-6 // fixed[0]))


def test_the_same_seed_draws_the_same_images(nets):
    model = dacconv.load(nets / "net.onnx")
    draws = [drawn_inputs(model, model.runner(), 4, seed, InputOptions()) for seed in (1, 1, 2)]
    one, same, other = (np.concatenate([f["image"] for f in d.batches]) for d in draws)
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_what_takes_no_image_gets_noise_and_that_is_said(tmp_path):
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", 1, [1, 4])],
        [helper.make_tensor_value_info("y", 1, [1, 4])], [weight],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8),
              tmp_path / "m.onnx")  # fmt: skip
    found = inputs(tmp_path / "m.onnx")
    assert (found.kind, found.family) == (NOISE, "standard normal")
    assert found.notes == ("no input of the model looks like an image or a signal",)


def test_noise_is_taken_where_drawn_images_give_no_finite_outputs(tmp_path):
    model = dacconv.load(conv_net(tmp_path, [1, 3, 8, 8], op="Log"))
    check = verify(model, model)
    assert (check.kind, check.relative_error, check.not_finite) == (DRAWN, None, ("y",))
    model = dacconv.load(conv_net(tmp_path, [1, 3, 8, 8], op="Abs"))
    assert verify(model, model).relative_error == 0


def test_models_that_cost_little_are_compared_on_more_samples(nets, tmp_path):
    assert default_samples(dacconv.load(nets / "net.onnx")) == MOST
    large = conv_net(tmp_path, [1, 3, 2000, 3000])
    assert 8 <= default_samples(dacconv.load(large)) < MOST
    assert default_samples(dacconv.load(nets / "net.pth")) == 8  # its sizes are not known


# -- the user's own -------------------------------------------------------------------------


@pytest.fixture
def data(work) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 12, 12, 3)).astype(np.uint8)
    np.savez(work / "data.npz", x=images, y=np.arange(40) % 7)
    np.savez(work / "images.npz", x=images)
    np.save(work / "images.npy", np.moveaxis(images, -1, 1).astype(np.float32))
    from PIL import Image

    for index, image in enumerate(images[:14]):
        for folder in (work / "flat", work / "classes" / f"{index % 7}"):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index:02}.png")
    return work


@pytest.mark.parametrize(
    ("name", "count", "labelled"),
    [
        ("data.npz", 40, True),
        ("images.npz", 40, False),
        ("images.npy", 40, False),
        ("flat", 14, False),
        ("classes", 14, True),
    ],
)
def test_convert_and_check_on_the_users_images(run, data, name, count, labelled):
    done = run("convert", "net.onnx", "--rank", 5, "--data", name, "--json", "-")
    check = json.loads(done.out)["verification"]
    assert done.code == 0
    assert (check["samples"], check["kind"]) == (count, f"images of {name}")
    assert (check["top1"] is not None) == labelled
    done = run("check", "net.onnx", "net.dac.onnx", "--data", name, "--json", "-")
    again = json.loads(done.out)["verification"]
    for key in ("samples", "top1", "agreement", "relative_error"):
        assert again[key] == check[key]
    assert check["latency"]["batch"] == 1


def test_accuracy_is_that_of_the_labels(data):
    model = dacconv.load("net.onnx")
    images = np.load("data.npz")["x"]
    scaled = np.moveaxis(images, -1, 1).astype(np.float32) / 255
    classes = next(iter(model.runner()({"image": scaled}).values())).argmax(1)
    wrong = classes.copy()
    wrong[:10] = (wrong[:10] + 1) % 7
    np.savez("right.npz", x=scaled, y=wrong)
    check = dacconv.verify(model, model, data="right.npz")
    assert check.top1 == (0.75, 0.75)
    assert check.agreement == 1


def test_classes_by_the_names_of_folders(data):
    model = dacconv.load("net.onnx")
    (data / "classes" / "3").rename(data / "classes" / "30")
    found = read_images(data / "classes", model, InputOptions())
    assert sorted(set(found.labels.tolist())) == [0, 1, 2, 4, 5, 6, 30]
    (data / "classes" / "30").rename(data / "classes" / "dog")
    found = read_images(data / "classes", model, InputOptions())
    assert sorted(set(found.labels.tolist())) == list(range(7))


@pytest.mark.parametrize(
    ("name", "words"),
    [("none", "no such file"), ("net.pth", "holds no images"), ("small.npz", "takes 3x12x12"),
     ("empty", "holds no images"), ("text.npz", "not readable")],
)  # fmt: skip
def test_data_that_does_not_fit(run, data, name, words):
    (data / "empty").mkdir()
    (data / "text.npz").write_text("text")
    np.savez(data / "small.npz", x=np.zeros((4, 5, 5, 3), np.uint8))
    for command in (("convert", "net.onnx", "--rank", 5), ("check", "net.onnx", "net.onnx")):
        done = run(*command, "--data", name)
        assert (done.code, "net.dac.onnx" in done.new) == (2, False)
        assert words in done.err


def test_data_is_never_overwritten(run, data):
    done = run("convert", "net.onnx", "--rank", 5, "--data", "data.npz", "-o", "data.npz")
    assert (done.code, done.kept) == (2, True)
    assert "inputs are never overwritten" in done.err


def test_a_job_of_a_release_has_its_own_data(run, data):
    (data / "dacconv.toml").write_text(
        'reports = ["json"]\n[jobs.a]\nmodel = "net.onnx"\nrank = 5\ndata = "data.npz"\n'
    )
    assert run("run").code == 0
    report = json.loads((data / "dist/net.dac.onnx.json").read_text())
    assert report["verification"]["kind"] == "images of data.npz"


def test_labels_that_do_not_fit():
    images = np.zeros((3, 1, 4, 4), np.float32)
    assert with_labels(images, None, "x").labels is None
    for labels in (np.zeros(2, int), np.zeros(3), np.zeros((3, 2), int)):
        with pytest.raises(UsageError):
            with_labels(images, labels, "x")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 255, 256, 599])
def test_data_that_is_not_finite_is_refused(value, place):
    """Else the NaN of the outputs would be taken for the model's own."""
    images = np.zeros((600, 1, 2, 2), np.float32)
    images[place, 0, 1, 1] = value
    with pytest.raises(UsageError, match="NaN or infinite"):
        with_labels(images, None, "x")


def test_a_batch_that_is_fixed_takes_whole_batches(tmp_path):
    model = dacconv.load(conv_net(tmp_path, [4, 3, 8, 8]))
    data = with_labels(np.ones((10, 3, 8, 8), np.float32), np.zeros(10, int), "x")
    found = user_inputs(model, model.runner(), data, InputOptions())
    assert [len(feeds["x"]) for feeds in found.batches] == [4, 4]
    assert [len(labels) for labels in found.labels] == [4, 4]
