"""State dicts of known networks, opened without ``--arch``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dacconv
from dacconv import zoo
from dacconv.formats.base import LoadOptions
from dacconv.formats.torch.files.checkpoint import Checkpoint
from dacconv.formats.torch.state import recognise
from dacconv.formats.torch.state.file import StateFile
from dacconv.zoo.known import NETWORKS


def state_of(name: str, **arguments) -> dict[str, torch.Tensor]:
    """The state dict of a network of the zoo, on the meta device."""
    with torch.device("meta"):
        return dict(zoo.build(name, **arguments).state_dict())


def recognised(state, options=LoadOptions(), path=Path("no/net.pt")):  # noqa: B008
    return recognise.recognise(StateFile(Checkpoint(path, state), (), state), options)


@pytest.mark.parametrize("name", [network.name for network in NETWORKS])
def test_every_known_network_is_told_by_its_keys_and_shapes(name):
    known = recognised(state_of(name))
    if name == "efficientnet_lite0":  # timm's tf_efficientnet_lite0 has the same keys and shapes
        assert known.options is None
        assert "--arch-arg tensorflow=true" in known.facts[0]
        return
    assert known.options is not None
    assert known.options.arch == f"dacconv.zoo:{name}"
    assert known.options.arch_args == {}
    assert f"recognised as --arch dacconv.zoo:{name}: it has the same " in known.facts[0]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {"classes": 7, "channels": 1, "width": 16}),
        ("vgg11_bn", {"classes": 5, "width": 4, "hidden": 12}),
        ("squeezenet1_1", {"classes": 3, "width": 4}),
        ("mobilenet_v1", {"classes": 3, "width": 0.25}),
        ("mobilenet_v2", {"width": 0.35}),
        ("shufflenet_v1", {"groups": 8}),
        ("shufflenet_v2", {"width": 0.5, "classes": 2}),
        ("densenet121", {"growth": 4}),
        ("ghostnet", {"width": 0.5}),
        ("repvgg_a0", {"deploy": True}),
        ("unet", {"classes": 3, "channels": 1, "width": 8}),
        ("xception", {"classes": 2, "width": 2}),
        ("dncnn", {"depth": 20, "width": 8}),
    ],
)
def test_classes_channels_and_widths_are_read_off_the_shapes(name, arguments):
    known = recognised(state_of(name, **arguments))
    assert known.options is not None
    assert known.options.arch_args == arguments
    ((_, shape),) = known.options.input_shapes.items()
    assert shape[1] == arguments.get("channels", 1 if name == "dncnn" else 3)
    for key, value in arguments.items():
        assert (
            f"--arch-arg {key}={str(value).lower() if value is True else value}" in known.facts[0]
        )


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "_orig_mod."])
def test_prefixes_do_not_matter(prefix):
    state = {prefix + key: value for key, value in state_of("squeezenet1_1", width=4).items()}
    known = recognised(state)
    assert known.options is not None
    assert known.options.arch == "dacconv.zoo:squeezenet1_1"
    assert f"under '{prefix}'" in known.facts[0]


def test_files_without_the_counters_of_batch_norm_are_recognised():
    state = {k: v for k, v in state_of("resnet18").items() if "num_batches" not in k}
    assert recognised(state).options is not None


def test_a_stem_of_another_size_is_refused_and_said():
    state = state_of("resnet18", classes=10)
    state["conv1.weight"] = torch.empty(64, 3, 3, 3, device="meta")
    known = recognised(state)
    assert known.options is None
    assert known.facts == (
        "its keys are those of dacconv.zoo:resnet18, but conv1.weight is 64x3x3x3, not 64x3x7x7: "
        "name your own network with --arch",
    )


def test_a_key_more_or_less_is_another_network():
    state = state_of("resnet18")
    assert recognised({**state, "extra.weight": torch.zeros(3, 3)}) == recognise.Recognition(None)
    del state["bn1.bias"]
    assert recognised(state) == recognise.Recognition(None)


def test_the_strides_of_resnet50_are_not_in_the_file_and_the_report_says_so():
    known = recognised(state_of("resnet50"))
    assert known.options is not None
    assert "--arch-arg stride_in_1x1=true" in known.facts[-1]
    assert "strides, paddings and activations are not in the file" in known.facts[1]


def test_torchvision_is_named_where_it_is_installed(monkeypatch):
    state = state_of("resnet18", classes=10)
    assert not [fact for fact in recognised(state).facts if "torchvision" in fact]
    monkeypatch.setattr(recognise, "find_spec", lambda name: object())
    other = "torchvision has the same network: --arch torchvision.models:resnet18"
    assert f"{other} --arch-arg num_classes=10" in recognised(state).facts
    assert other in recognised(state_of("resnet18")).facts
    assert not [f for f in recognised(state_of("resnet18", width=8)).facts if "torchvision" in f]


def test_the_users_input_shape_stays():
    options = LoadOptions(input_shapes={"": (2, 3, 64, 64)})
    known = recognised(state_of("squeezenet1_1"), options)
    assert known.options is not None
    assert known.options.input_shapes == {"": (2, 3, 64, 64)}
    assert "--input-shape" not in " ".join(known.facts)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small ResNet-18 with the keys of torchvision, in a checkpoint of a trainer."""
    torch.manual_seed(0)
    net = zoo.resnet18(classes=5, width=4).eval()
    path = tmp_path_factory.mktemp("known") / "small.pt"
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, path)
    return path, net


OPENED = "recognised as --arch dacconv.zoo:resnet18 --arch-arg classes=5 --arch-arg width=4"


def test_the_plain_command_converts_and_verifies(small, run, work):
    path, net = small
    model = work / "model.pt"
    model.write_bytes(path.read_bytes())
    result = run("convert", "model.pt", "--rank", 2, "--last-k", 5, "--samples", 2)
    assert result.code == 0, result.err
    assert OPENED in result.out
    assert "and its input to be 1x3x224x224 (--input-shape)" in result.out
    assert "relative error" in result.out
    assert result.new == ["model.dac.pt"]

    again = run("inspect", "model.dac.pt", "--json", "-")
    report = json.loads(again.out)
    assert report["format"] == "state_dict"
    assert report["totals"]["macs"]["before"] > 0
    assert any("as its record says" in note for note in report["notes"])

    converted = dacconv.apply(zoo.resnet18(classes=5, width=4), work / "model.dac.pt").eval()
    loaded = dacconv.load(work / "model.dac.pt")
    assert dacconv.inspect(loaded).before.macs == report["totals"]["macs"]["before"]
    image = torch.randn(1, 3, 224, 224)
    (output,) = loaded.runner()({"x": image.numpy()}).values()
    with torch.no_grad():
        assert torch.allclose(converted(image), torch.from_numpy(output), atol=1e-5)
        assert not torch.allclose(converted(image), net(image), atol=1e-6)


def test_weights_alone_on_request(small):
    path, _ = small
    model = dacconv.load(path, arch="none")
    assert model.format == "weights"
    assert not [note for note in model.graph().notes if "recognised" in note]


def test_the_record_opens_only_networks_of_the_zoo_that_fit(small):
    path, _ = small
    held = torch.load(path, weights_only=True)
    state = held["state_dict"]

    def with_record(arch) -> StateFile:
        record = {"record_version": 1, "modules": {}, "arch": arch, "provenance": {}, "plan": {}}
        content = {"state_dict": state, "dacconv": record}
        return StateFile(Checkpoint(path, content), ("state_dict",), state)

    right = {"name": "resnet18", "arguments": {"classes": 5, "width": 4}}
    known = recognise.recognise(with_record(right), LoadOptions())
    assert known.facts[0].endswith("as its record says")
    for wrong in (
        {"name": "os:system", "arguments": {}},
        {"name": "resnet18", "arguments": {"classes": 6}},
        {"name": "resnet18", "arguments": {"classes": 5, "width": 4, "nonsense": 1}},
        {"name": "resnet18", "arguments": {"classes": float("nan")}},
        {"name": "dncnn", "arguments": {"depth": 100_000}},
        {"name": "resnet18", "arguments": {"classes": "5"}},
        {"name": "resnet18"},
        "resnet18",
    ):
        facts = recognise.recognise(with_record(wrong), LoadOptions()).facts
        assert not facts[0].endswith("as its record says"), wrong


def test_an_unknown_state_dict_stays_weights_alone(tmp_path):
    path = tmp_path / "own.pt"
    torch.save({"a.weight": torch.randn(4, 3, 3, 3), "b.weight": torch.randn(5, 4, 3, 3)}, path)
    model = dacconv.load(path)
    assert model.format == "weights"
    assert replace(model, facts=()).graph().notes == model.graph().notes
