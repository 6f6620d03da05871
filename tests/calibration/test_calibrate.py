"""Whole conversions with calibration, on a small residual net with BatchNorm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import dacconv
from dacconv.calibration import descent as tuning
from dacconv.calibration.inputs import families as made_inputs
from dacconv.calibration.inputs import image_input
from dacconv.calibration.inputs.images import dead_leaves
from dacconv.calibration.inputs.pixels import InputOptions
from dacconv.calibration.inputs.scale import scale_from_biases
from dacconv.calibration.study import relative_error
from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.inputs import count_samples
from dacconv.formats.torch import distil as torch_distil

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Residual(nn.Module):
    """Two convs with BatchNorm, a strided and dilated one, and a head."""

    def __init__(self, norm=True):
        super().__init__()
        normed = nn.BatchNorm2d if norm else nn.Identity
        self.first = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.bn1 = normed(12)
        self.second = nn.Conv2d(12, 12, (3, 5), padding=(2, 2), dilation=(2, 1), bias=False)
        self.bn2 = normed(12)
        self.third = nn.Conv2d(12, 16, 3, 2)
        self.head = nn.Linear(16, 5)

    def forward(self, image):
        x = torch.relu(self.bn1(self.first(image)))
        x = torch.relu(x + self.bn2(self.second(x)))
        return self.head(torch.relu(self.third(x)).mean((2, 3)))


def trained(norm=True):
    """Weights at random, and statistics of what they make of pixels in -2..2."""
    torch.manual_seed(0)
    net = Residual(norm)
    net.train()
    for _ in range(30):
        net(torch.rand(16, 3, 16, 16).mul(4).sub(2))
    return net.eval()


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "net.pt"
    torch.save(trained(), path)
    return dacconv.load(path, trust_pickle=True, input_shapes={"": (1, 3, 16, 16)})


@pytest.fixture
def plain_net(tmp_path):
    path = tmp_path / "plain.pt"
    torch.save(trained(norm=False), path)
    return dacconv.load(path, trust_pickle=True, input_shapes={"": (1, 3, 16, 16)})


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(tuning, "STEPS", dict.fromkeys(tuning.STEPS, tuning.FEWEST))


def converted(model, how, images=24, **choice):
    calibrated, told = dacconv.calibrate(model, how, options=InputOptions(images=images))
    plan = dacconv.plan(model, calibrated=calibrated, **choice)
    return dacconv.convert(model, plan, calibrated=calibrated), calibrated, told


def test_reconstruction_lowers_the_error_that_it_reports(model):
    done, _, _ = converted(model, "synthetic", rank=1)
    report = done.report.calibration
    assert report.taken
    assert report.error < report.plain_error
    assert {row.name for row in done.report.rows if row.fit} == {"first", "second", "third"}
    for row in done.report.rows:
        if row.fit:
            assert row.fit.held <= row.fit.plain
    plain = dacconv.convert(model, done.plan).model
    fresh = dacconv.calibrate(model, "synthetic", options=InputOptions(images=24), seed=7)[0]
    original = [model.runner()(feeds) for feeds in fresh.inputs.held]

    def error(made):
        run = made.runner()
        return relative_error(original, [run(feeds) for feeds in fresh.inputs.held])

    assert error(done.model) < 0.7 * error(plain)


def test_the_same_result_twice_and_full_rank_is_exact(model):
    first, again = (converted(model, "synthetic", rank=1)[0] for _ in range(2))
    x = {"image": np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)}
    for key, value in first.model.runner()(x).items():
        np.testing.assert_array_equal(value, again.model.runner()(x)[key])
    calibrated, _ = dacconv.calibrate(model, "synthetic", options=InputOptions(images=24))
    plan = dacconv.plan(model, rank=100, allow_costlier=True)
    full = dacconv.convert(model, plan, calibrated=calibrated).model.runner()(x)
    for key, value in model.runner()(x).items():
        np.testing.assert_allclose(full[key], value, rtol=2e-3, atol=2e-3)


def test_rank_alone_stays_as_it_was(model):
    plan = dacconv.plan(model, rank=2)
    without, said = dacconv.calibrate(model, "none")
    assert without is None
    assert "weights only" in said
    assert dacconv.convert(model, plan).report.calibration is None


def test_a_budget_is_met_with_the_bias_counted(model):
    done, _, _ = converted(model, "synthetic", params=0.6)
    assert done.report.after.params <= 0.6 * done.report.before.params
    loaded = sum(p.numel() for p in done.model.module.parameters())
    assert done.report.after.params == loaded


def test_distilled_images_see_the_stored_statistics(model, monkeypatch):
    monkeypatch.setattr(torch_distil, "STEPS", 30)
    done, calibrated, told = converted(model, "auto", macs=0.6)
    assert calibrated.inputs.kind == "distilled"
    assert "distilled" in told
    assert done.report.calibration.second_error is not None
    assert 1 - done.report.saving() <= 0.6


def test_without_batchnorm_auto_is_synthetic_and_says_so(plain_net):
    _, calibrated, _ = converted(plain_net, "auto", macs=0.6)
    assert calibrated.inputs.kind == "synthetic"
    assert any("no BatchNorm" in note for note in calibrated.inputs.notes)
    assert any("is the most likely" in note for note in calibrated.inputs.notes)
    with pytest.raises(UnsupportedError, match="no BatchNorm"):
        dacconv.calibrate(plain_net, "distilled")


def test_the_first_batchnorm_tells_how_the_input_is_scaled(model):
    scaled = dacconv.calibrate(model, "synthetic")[0].inputs.images
    spread = scaled.std()
    assert 0.5 < spread / np.sqrt(16 / 12) < 2
    assert abs(scaled.mean()) < 1


def test_biases_tell_that_the_input_is_of_bytes(plain_net):
    images = dead_leaves(16, 3, (16, 16), 0)
    node = next(n.name for n in plain_net.graph().nodes if n.op == "conv")
    conv = plain_net.conv(node)
    for size, offset in ((1.0, None), (1 / 255, 0.0), (1 / 255, 128.0)):
        weight = conv.weight * size
        made = replace(conv, weight=weight, bias=np.linspace(-1, 1, 12, dtype=np.float32))
        if offset == 0.0:  # the biases take back what the mean of the pixels makes
            middle = 255 * images.mean(axis=(0, 2, 3))
            made = replace(made, bias=made.bias - weight.sum(axis=(2, 3)) @ middle)

        class Fixed:
            def graph(self):
                return plain_net.graph()

            def conv(self, node, made=made):
                return made

        found = scale_from_biases(Fixed(), images)
        if offset is None:
            assert found is None
        else:
            assert found.gain.tolist() == [255] * 3
            assert (found.offset == 0).all() == (offset == 0.0)
            assert "0..255" in found.description


def test_a_scale_that_is_guessed_is_judged_at_another_one_too(plain_net):
    found, _ = made_inputs.synthetic_inputs(plain_net, InputOptions(images=16), 0, 16)
    told, _ = made_inputs.synthetic_inputs(plain_net, InputOptions(range=(0, 1)), 0, 16)
    assert count_samples(found.second) == count_samples(told.second)
    ranges = {np.ptp(np.concatenate([f["image"] for f in family])) for family in found.others}
    assert len(ranges) == len(found.others) >= 1
    assert not told.others
    assert any("at any of these scales" in note for note in found.notes)
    assert not any("at any of these scales" in note for note in told.notes)


def test_what_restores_images_is_given_noise_to_remove(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
    torch.save(net.eval(), tmp_path / "net.pt")
    shapes = {"": (1, 1, 16, 16)}
    model = dacconv.load(tmp_path / "net.pt", trust_pickle=True, input_shapes=shapes)
    found, _ = made_inputs.synthetic_inputs(model, InputOptions(), 0, 16)
    clean, _ = made_inputs.draw_images(found.image_input, 16, 0)
    strengths = (found.images - clean).std(axis=(1, 2, 3))
    assert strengths.min() < 0.08
    assert 0.1 < strengths.max() < 0.25
    assert any("noise was added" in note for note in found.notes)
    assert any("0..1 is the most likely" in note for note in found.notes)
    assert max(float(feeds[next(iter(feeds))].max()) for feeds in found.second) < 3


def test_the_plain_split_stays_where_nothing_else_does_better(model, monkeypatch):
    from dacconv.conversion import calibrated as use

    monkeypatch.setattr(
        use, "judge", lambda c, plain, rebuilt, told, judge=use.judge: judge(c, plain, plain, told)
    )
    done, _, _ = converted(model, "synthetic", rank=1)
    assert not done.report.calibration.taken
    assert all(row.fit is None for row in done.report.rows)
    x = {"image": np.ones((1, 3, 16, 16), np.float32)}
    plain = dacconv.convert(model, done.plan).model.runner()(x)
    for key, value in done.model.runner()(x).items():
        np.testing.assert_array_equal(value, plain[key])


def test_tuning_is_told_and_lowers_the_error(model, monkeypatch):
    done, _, _ = converted(model, "synthetic", images=48, rank=1)
    assert any("tuned together in 40 steps" in note for note in done.report.calibration.notes)
    assert all(row.fit.what.endswith("tuned") for row in done.report.rows if row.fit)
    monkeypatch.setattr(tuning, "MAX_MACS", 1)
    without, _, _ = converted(model, "synthetic", images=48, rank=1)
    assert any("would take long" in note for note in without.report.calibration.notes)
    assert done.report.calibration.error < without.report.calibration.error
    assert done.report.calibration.second_error < without.report.calibration.second_error


def test_tuning_that_harms_the_second_family_is_not_taken(model, monkeypatch):
    calls = []

    def harm(done):
        calls.append(done)
        return (1.0, 2.0, 1.5, 1.0)[len(calls) - 1]  # held out: better; second family: worse

    monkeypatch.setattr(tuning, "_harm", lambda done: harm(done))
    done, _, _ = converted(model, "synthetic", rank=1)
    assert len(calls) == 4
    assert any("did not help" in note for note in done.report.calibration.notes)
    assert not any(row.fit.what.endswith("tuned") for row in done.report.rows if row.fit)


def test_jittered_images_hold_the_same_pixels(model):
    calibrated, _ = dacconv.calibrate(model, "synthetic", options=InputOptions(images=8))
    inputs, rng = calibrated.inputs, np.random.default_rng(0)
    given = inputs.fitted[0]
    made = inputs.image_input.augmented(given, rng)
    assert not np.array_equal(made["image"], given["image"])
    for mine, theirs in zip(made["image"], given["image"], strict=True):
        np.testing.assert_array_equal(np.sort(mine, axis=None), np.sort(theirs, axis=None))
        np.testing.assert_allclose(mine.sum((1, 2)), theirs.sum((1, 2)), rtol=1e-3, atol=1e-2)


def test_inputs_from_files(model, tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=pixels, y=np.arange(12))
    given = InputOptions(mean=(0.5,), std=(0.25,))
    read = dacconv.calibrate(model, str(tmp_path / "x.npz"), options=given)[0].inputs
    expected = (pixels.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(read.images, expected, atol=1e-5)
    raw = rng.standard_normal((12, 3, 16, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", raw)
    read = dacconv.calibrate(model, str(tmp_path / "x.npy"))[0].inputs
    np.testing.assert_array_equal(read.images, raw)
    assert sum(len(feeds["image"]) for feeds in read.held) == 6
    assert sum(len(feeds["image"]) for feeds in read.fitted) == 6 + 256
    assert "256 distilled ones" in read.description
    judges = np.concatenate([feeds["image"] for feeds in read.second])
    np.testing.assert_allclose(judges.mean((0, 2, 3)), raw.mean((0, 2, 3)), atol=1e-4)
    np.testing.assert_allclose(judges.std((0, 2, 3)), raw.std((0, 2, 3)), rtol=1e-3)
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    read = dacconv.calibrate(model, str(folder), options=InputOptions(range=(0, 255)))[0].inputs
    np.testing.assert_allclose(read.images, pixels.transpose(0, 3, 1, 2), atol=1e-2)


def test_a_fixed_batch_gets_two_whole_ones_at_least(tmp_path):
    torch.save(trained(norm=False), tmp_path / "net.pt")
    shape = {"": (40, 3, 16, 16)}
    model = dacconv.load(tmp_path / "net.pt", trust_pickle=True, input_shapes=shape)
    found = dacconv.calibrate(model, "synthetic")[0].inputs
    for family in (found.fitted, found.held, found.second):
        assert family
        assert {len(array) for feeds in family for array in feeds.values()} == {40}
    np.save(tmp_path / "x.npy", np.zeros((79, 3, 16, 16), np.float32))
    with pytest.raises(UsageError, match="79 inputs are too few") as caught:
        dacconv.calibrate(model, str(tmp_path / "x.npy"))
    assert "at least 80" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.npy", b"not an array"),
        ("missing.npy", None),
        ("shape.npy", np.zeros((8, 3, 9, 9), np.float32)),
        ("few.npy", np.zeros((2, 3, 16, 16), np.float32)),
        ("nan.npy", np.full((8, 3, 16, 16), np.nan, np.float32)),
    ],
)
def test_bad_inputs_are_told(model, tmp_path, name, content):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(UsageError) as caught:
        dacconv.calibrate(model, str(path))
    assert caught.value.where == str(path)


def test_halves_of_one_batch_are_told_apart():
    one = [{"x": np.arange(6)}]
    fitted, held = image_input.split_halves(one)
    assert fitted[0]["x"].tolist() == [0, 2, 4]
    assert held[0]["x"].tolist() == [1, 3, 5]
