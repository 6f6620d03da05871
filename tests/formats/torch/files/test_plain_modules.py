"""Pickled modules of torch.nn classes alone open without trust; nothing else in a pickle does."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dacconv.errors import FormatError
from dacconv.formats import open_model
from dacconv.formats.base import LoadOptions
from dacconv.formats.torch.files.plain_modules import CLASSES, read_plain

ARGUMENTS = {
    "Softmax": (1,), "LogSoftmax": (1,), "Threshold": (0.0, 0.0), "ChannelShuffle": (1,),
    "Unflatten": (1, (2, 2)), "GroupNorm": (1, 4), "LayerNorm": (4,), "RMSNorm": (4,),
    "LocalResponseNorm": (2,), "Linear": (2, 2), "PixelShuffle": (2,), "PixelUnshuffle": (2,),
    "LPPool1d": (2, 2), "LPPool2d": (2, 2), "ConstantPad1d": (1, 0.5), "ConstantPad2d": (1, 0.5),
    "ConstantPad3d": (1, 0.5),
}  # fmt: skip
SIZED = {"BatchNorm": (2,), "InstanceNorm": (2,), "Conv": (2, 2, 1), "Avg": (2,), "Max": (2,),
         "Adaptive": (2,), "Pad": (1,)}  # fmt: skip


def instance(kind: type[nn.Module]) -> nn.Module:
    name = kind.__name__
    sized = next((a for part, a in SIZED.items() if part in name), ())
    return kind(*ARGUMENTS.get(name, sized))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            body=nn.Conv2d(16, 16, 3, padding=1, bias=False),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(16, 5),
        )
    ).eval()


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def refused(path: Path, words: str) -> None:
    with pytest.raises(FormatError) as caught:
        open_model(path)
    assert words in str(caught.value)
    assert "--trust-pickle" in str(caught.value)


@pytest.mark.parametrize("kind", CLASSES.values(), ids=lambda kind: kind.__name__)
def test_every_class_comes_back_as_it_was(tmp_path: Path, kind: type[nn.Module]) -> None:
    before = nn.Sequential(instance(kind)).train()
    after = read_plain(saved(tmp_path / "a.pt", before), mapped=True)
    assert type(after[0]) is kind
    assert repr(after) == repr(before)
    for name, value in vars(before[0]).items():
        if name not in ("_parameters", "_buffers"):
            assert vars(after[0])[name] == value, name
    assert list(after.state_dict()) == list(before.state_dict())
    for name, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor)


@pytest.mark.parametrize("content", [net(), {"epoch": 3, "model": net()}], ids=["bare", "entry"])
def test_opens_without_trust_and_gives_the_same(tmp_path: Path, content: object) -> None:
    path = saved(tmp_path / "a.pt", content)
    shapes = {"": (1, 3, 8, 8)}
    plain = open_model(path, LoadOptions(input_shapes=shapes))
    trusted = open_model(path, LoadOptions(trust_pickle=True, input_shapes=shapes))
    assert plain.format == "module"
    assert plain.graph() == trusted.graph()
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    (name,) = (spec.name for spec in plain.inputs())
    for a, b in zip(plain.runner()({name: x}).values(), trusted.runner()({name: x}).values(),
                    strict=True):  # fmt: skip
        assert np.array_equal(a, b)


def test_what_is_shared_stays_shared(tmp_path: Path) -> None:
    block, tied = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    tied.weight = block.weight
    block.weight.requires_grad_(False)
    after = read_plain(saved(tmp_path / "a.pt", nn.Sequential(block, block, tied)), mapped=True)
    assert after[0] is after[1]
    assert after[0].weight is after[2].weight
    assert not after[0].weight.requires_grad


def test_a_file_of_an_older_torch_lacks_what_came_later(tmp_path: Path) -> None:
    before = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    for name in ("padding_mode", "_reversed_padding_repeated_twice"):
        del vars(before[0])[name]
    for name in ("_forward_hooks_with_kwargs", "_non_persistent_buffers_set"):
        del vars(before[0])[name]
    after = read_plain(saved(tmp_path / "a.pt", before), mapped=True)
    x = torch.ones(1, 3, 5, 5)
    assert after(x).shape == (1, 4, 5, 5)
    del vars(before[0])["stride"]
    refused(saved(tmp_path / "b.pt", before), "Conv2d has no stride")


def touch(path: str) -> None:
    Path(path).touch()


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["forward", "__call__", "__class__", "_call_impl", "__getattr__",
                                  "_compiled_call_impl", "__wrapped__", "state_dict", "extra",
                                  "_conv_forward", "__torch_function__", "_version"])  # fmt: skip
@pytest.mark.parametrize("value", [1, "x"])
def test_no_attribute_takes_the_place_of_a_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    # torch itself leaves _compiled_call_impl out of what it writes
    monkeypatch.setattr(nn.Conv2d, "__getstate__", lambda self: dict(vars(self)), raising=False)
    hostile = net()
    vars(hostile.body)[name] = value
    refused(saved(tmp_path / "a.pt", hostile), f"Conv2d has the attribute {name}")


@pytest.mark.parametrize("name", [n for n in vars(nn.ReLU()) if "hooks" in n])
def test_no_hook_is_taken(tmp_path: Path, name: str) -> None:
    hostile = net()
    content = OrderedDict({1: "x"})
    vars(hostile.body)[name] = content
    refused(saved(tmp_path / "a.pt", hostile), f"Conv2d has {name} with content")


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("padding", torch.ones(2), "padding, which is no plain value"),
        ("stride", ({"a": 1},), "stride, which is no plain value"),
        ("_parameters", {"weight": torch.ones(2)}, "weight, which is no plain tensor"),
        ("_parameters", {"forward": None}, "_parameters of the name forward"),
        ("_parameters", {1: None}, "with a name that is no text"),
        ("_parameters", [], "_parameters, which is no dict"),
        ("_buffers", {"x": torch.ones(1)}, "_buffers of the name x"),
        ("_modules", {"x": nn.ReLU()}, "a submodule of the name x"),
        ("_non_persistent_buffers_set", {"x"}, "_non_persistent_buffers_set with content"),
        ("training", "yes", "the attribute training"),
        ("_is_full_backward_hook", "yes", "_is_full_backward_hook"),
        ("weight", 1, "the attribute weight"),
    ],
)
def test_a_state_has_what_its_class_has(
    tmp_path: Path, place: str, value: object, words: str
) -> None:
    hostile = net()
    vars(hostile.body)[place] = value
    refused(saved(tmp_path / "a.pt", hostile), words)


@pytest.mark.parametrize("name", ["forward", "append", "", "a.b"])
def test_no_submodule_takes_the_place_of_a_method(tmp_path: Path, name: str) -> None:
    hostile = net()
    hostile._modules[name] = nn.ReLU()
    refused(saved(tmp_path / "a.pt", hostile), f"a submodule of the name {name}")


def test_hooks_of_a_parameter_are_not_taken(tmp_path: Path) -> None:
    hostile = net()
    hostile.body.weight.note = "x"  # an attribute of a tensor
    after = read_plain(saved(tmp_path / "a.pt", hostile), mapped=True)
    assert not vars(after.body.weight)


def test_cycles_end(tmp_path: Path) -> None:
    hostile = net()
    hostile._modules["again"] = hostile
    refused(saved(tmp_path / "a.pt", hostile), "hold themselves")
    deep = nn.Sequential()
    for _ in range(150):
        deep = nn.Sequential(deep)
    refused(saved(tmp_path / "b.pt", deep), "nested too deep")


@pytest.mark.parametrize("place", ["_forward_hooks", "attribute", "entry", "module"])
def test_bombs_beside_plain_modules_do_not_run(tmp_path: Path, place: str) -> None:
    mark, hostile = tmp_path / "ran", net()
    bomb = Bomb(mark)
    if place == "_forward_hooks":
        hostile.body._forward_hooks[0] = bomb  # type: ignore[assignment]
    elif place == "attribute":
        vars(hostile.body)["padding"] = bomb
    elif place == "module":
        hostile._modules["x"] = bomb  # type: ignore[assignment]
    content = {"model": hostile, "x": bomb} if place == "entry" else hostile
    refused(saved(tmp_path / "a.pt", content), "system")
    assert not mark.exists()


def write_archive(path: Path, program: bytes) -> Path:
    """A checkpoint with this pickle."""
    template = io.BytesIO()
    torch.save({}, template)
    with zipfile.ZipFile(template) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, program if name.endswith("data.pkl") else source.read(name))
    return path


CONV = b"ctorch.nn.modules.conv\nConv2d\n"
SEQUENTIAL = b"ctorch.nn.modules.container\nSequential\n"


@pytest.mark.parametrize(
    "program",
    [
        # a class is called with arguments, or made with some
        SEQUENTIAL + b"(K\x01tR.",
        SEQUENTIAL + b"K\x01\x85\x81.",
        # two states of one module
        SEQUENTIAL + b")\x81}b}b.",
        # a state that is no dict, and none
        SEQUENTIAL + b")\x81K\x01b.",
        SEQUENTIAL + b")\x81.",
        # an attribute of a class; a method by its dotted name
        b"ctorch.nn.modules.conv\nConv2d.forward\n)R.",
        b"ctorch.nn.modules.module\n_global_forward_hooks\n.",
        # other callables
        b"c__builtin__\neval\nX\x0d\x00\x00\x00open('ran','w')\x85R.",
        b"ctorch\nload\nX\x01\x00\x00\x00x\x85R.",
        b"ctorch.hub\nload\nX\x01\x00\x00\x00x\x85R.",
        SEQUENTIAL + b"0c__builtin__\ngetattr\n" + CONV + b"X\x07\x00\x00\x00forward\x86R.",
        # a class as the state of another, or as a container's key
        SEQUENTIAL + b")\x81" + CONV + b"b.",
        b"}" + SEQUENTIAL + b")\x81K\x01s.",
        # opcodes that torch does not read
        b"(itorch.nn.modules.container\nSequential\n.",
        b"\x8c\x19torch.nn.modules.container\x8c\nSequential\x93)\x81.",
    ],
)
def test_programs_of_other_kinds_end_in_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_archive(tmp_path / "a.pt", b"\x80\x02" + program)
    with pytest.raises(FormatError):
        open_model(path)
    assert os.listdir(tmp_path) == ["a.pt"]


def test_damage_ends_in_an_error(tmp_path: Path) -> None:
    with zipfile.ZipFile(saved(tmp_path / "a.pt", net())) as archive:
        program = next(archive.read(n) for n in archive.namelist() if n.endswith("data.pkl"))
    draw = np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(program)
        broken[draw.integers(len(broken))] ^= 1 << int(draw.integers(8))
        with suppress(FormatError):  # or harmless
            open_model(write_archive(tmp_path / "b.pt", bytes(broken)))


def test_classes_of_users_are_not_looked_up(tmp_path: Path) -> None:
    class Own(nn.Sequential):
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return touch, (str(tmp_path / "ran"),)

    refused(saved(tmp_path / "a.pt", nn.Sequential(Own())), "touch")
    assert not (tmp_path / "ran").exists()
    assert pickle.loads(pickle.dumps(touch)) is touch  # what a trusting reader would call
