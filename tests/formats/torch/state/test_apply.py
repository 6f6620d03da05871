from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_nets
from safetensors.torch import load_file, save_file
from torch import nn
from torch_nets import DnCNN, ResNet20, relative, small_net, split, split_all

import dacconv
from dacconv.errors import FormatError, UsageError
from dacconv.formats import LoadOptions, open_model
from dacconv.fusions import find_fusions
from dacconv.graph.types import Conv, Plan, Rewrite

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
SHAPE = (2, 3, 24, 24)
ARCH = LoadOptions(arch=f"{torch_nets.__file__}:small_net", input_shapes={"": SHAPE})


def convert(path: Path, out: Path, options: LoadOptions, *, merge: bool = False) -> Path:
    model: Any = open_model(path, options)
    if merge:
        model = model.rewrite(find_fusions(model).rewrites)
    split_all(model).save(out, provenance={}, plan=Plan(()))
    return out


def agree(net: nn.Module, other: nn.Module, shape: tuple[int, ...] = SHAPE) -> float:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return relative(net.eval()(x), other.eval()(x))


def bare(path: Path) -> Path:
    torch.save(small_net().state_dict(), path)
    return path


def wrapped(path: Path) -> Path:
    state = {f"module.{k}": v for k, v in small_net().state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, path)
    return path


def tensors(path: Path) -> Path:
    save_file(small_net().state_dict(), path)
    return path


FILES: list[tuple[str, Callable[[Path], Path]]] = [
    ("a.pth", bare), ("a.th", wrapped), ("a.safetensors", tensors)
]  # fmt: skip


class TestApply:
    @pytest.mark.parametrize(("name", "make"), FILES, ids=[name for name, _ in FILES])
    @pytest.mark.parametrize("how", ["arch", "merged", "weights"])
    def test_two_lines(
        self, tmp_path: Path, name: str, make: Callable[[Path], Path], how: str
    ) -> None:
        options = LoadOptions(vouched=("*",)) if how == "weights" else ARCH
        path = make(tmp_path / name)
        if how == "weights":  # the depthwise conv must not be split as a plain one
            options = LoadOptions(vouched=("stem", "same", "reflect", "wide", "holes"))
        out = convert(path, tmp_path / f"b{path.suffix}", options, merge=how == "merged")
        fresh = torch_nets.SmallNet()
        net = dacconv.apply(fresh, out)
        assert net is fresh
        assert agree(small_net(), net) < 1e-5

    @pytest.mark.parametrize(
        "options", [ARCH, LoadOptions(vouched=("[!d]*",))], ids=["arch", "weights"]
    )
    def test_without_the_plan_it_is_read_off_the_keys(
        self, tmp_path: Path, options: LoadOptions
    ) -> None:
        out = convert(bare(tmp_path / "a.pth"), tmp_path / "b.pth", options)
        (tmp_path / "b.plan.json").unlink()
        net = dacconv.apply(torch_nets.SmallNet(), out)
        assert agree(small_net(), net) < 1e-5
        assert net.same[0].padding == "same"
        assert net.reflect[0].padding_mode == "reflect"
        assert net.reflect[1].padding_mode == "zeros"

    def test_without_the_plan_of_a_merged_file_it_says_what_is_missing(
        self, tmp_path: Path
    ) -> None:
        out = convert(bare(tmp_path / "a.pth"), tmp_path / "b.pth", ARCH, merge=True)
        (tmp_path / "b.plan.json").unlink()
        net = torch_nets.SmallNet()
        with pytest.raises(UsageError, match=r"bn\.weight") as caught:
            dacconv.apply(net, out)
        assert ".plan.json" in str(caught.value)
        assert type(net.stem) is nn.Conv2d  # as it was

    def test_all_convs_split_and_a_prefix_that_nothing_else_shows(self, tmp_path: Path) -> None:
        net = DnCNN(4, 8)
        torch.save({f"module.{k}": v for k, v in net.state_dict().items()}, tmp_path / "a.pth")
        out = convert(tmp_path / "a.pth", tmp_path / "b.pth", LoadOptions())
        (tmp_path / "b.plan.json").unlink()
        assert agree(net, dacconv.apply(DnCNN(4, 8), out), (1, 1, 16, 16)) < 1e-5

    def test_spatial_chain(self, tmp_path: Path) -> None:
        """A k x 1 then 1 x k conv: each takes the stride and padding of its own axis."""
        net = nn.Sequential(nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2)))
        torch.save(net.state_dict(), tmp_path / "a.pth")
        model: Any = open_model(tmp_path / "a.pth")
        none = ((0, 0), (0, 0))
        tall = Conv(np.ones((2, 3, 3, 1), np.float32), None, (1, 1), none, (1, 1))
        wide = Conv(
            np.ones((4, 2, 1, 5), np.float32), np.zeros(4, np.float32), (1, 1), none, (1, 1)
        )
        after = model.rewrite([Rewrite("0", "0:in", ((tall, wide),))])
        after.save(tmp_path / "b.pth", provenance={}, plan=Plan(()))
        made = dacconv.apply(nn.Sequential(nn.Conv2d(3, 4, (3, 5), (2, 1), (1, 2), (1, 2))),
                             tmp_path / "b.pth")[0]  # fmt: skip
        assert made[0].stride == (2, 1)
        assert made[0].padding == (1, 0)
        assert made[1].padding == (0, 2)
        assert made[1].dilation == (1, 2)

    def test_strided_1_by_k(self, tmp_path: Path) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, (1, 5), stride=2, padding=(0, 2)))
        torch.save(net.state_dict(), tmp_path / "a.pth")
        out = convert(tmp_path / "a.pth", tmp_path / "b.pth", LoadOptions())
        (tmp_path / "b.plan.json").unlink()
        fresh = nn.Sequential(nn.Conv2d(3, 4, (1, 5), stride=2, padding=(0, 2)))
        assert agree(net, dacconv.apply(fresh, out), (1, 3, 9, 9)) < 1e-5

    def test_dtype_flags_and_aliases_of_the_network_stay(self, tmp_path: Path) -> None:
        out = convert(bare(tmp_path / "a.pth"), tmp_path / "b.pth", ARCH)
        net = torch_nets.SmallNet().double().eval()
        net.stem.requires_grad_(False)
        net.alias = net.stem
        state = torch.load(out, weights_only=True)
        state |= {k.replace("stem", "alias"): v for k, v in state.items() if k.startswith("stem")}
        torch.save(state, out)
        dacconv.apply(net, out)
        assert net.alias is net.stem
        assert net.stem[0].weight.dtype == torch.float64
        assert not net.stem[0].weight.requires_grad
        assert not net.stem[0].training

    def test_original_file_is_just_loaded(self, tmp_path: Path) -> None:
        assert (
            agree(small_net(), dacconv.apply(torch_nets.SmallNet(), bare(tmp_path / "a.pth"))) == 0
        )

    def test_key(self, tmp_path: Path) -> None:
        state = small_net().state_dict()
        other = {k: v.clone() for k, v in torch_nets.SmallNet().state_dict().items()}
        torch.save({"params": other, "params_ema": state}, tmp_path / "a.pth")
        out = convert(tmp_path / "a.pth", tmp_path / "b.pth", replace(ARCH, key="params_ema"))
        assert agree(small_net(), dacconv.apply(torch_nets.SmallNet(), out)) < 1e-5
        with pytest.raises(UsageError, match="nothing"):
            dacconv.apply(torch_nets.SmallNet(), out, key="nothing")

    def test_converted_twice(self, tmp_path: Path) -> None:
        model: Any = open_model(bare(tmp_path / "a.pth"), ARCH)
        for name in ("stem", "wide"):
            source = model.graph().node(name).inputs[0]
            model = model.rewrite([Rewrite(name, source, split(model.conv(name)))])
            model.save(tmp_path / f"{name}.pth", provenance={}, plan=Plan(()))
            model = open_model(tmp_path / f"{name}.pth", ARCH)
        net = dacconv.apply(torch_nets.SmallNet(), tmp_path / "wide.pth")
        assert agree(small_net(), net) < 1e-5

    def test_real_file(self, shared_data: Path, tmp_path: Path) -> None:
        path = shared_data / "cifar10" / "resnet20.th"
        options = LoadOptions(
            arch=f"{torch_nets.__file__}:ResNet20", input_shapes={"": (1, 3, 32, 32)}
        )
        original = ResNet20()
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        original.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
        out = convert(path, tmp_path / "b.th", options, merge=True)
        assert agree(original, dacconv.apply(ResNet20(), out), (2, 3, 32, 32)) < 1e-5


class TestMisfits:
    def converted(self, tmp_path: Path) -> Path:
        return convert(bare(tmp_path / "a.pth"), tmp_path / "b.pth", ARCH)

    def test_other_network(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="has no layer") as caught:
            dacconv.apply(ResNet20(), self.converted(tmp_path))
        assert "before the conversion" in str(caught.value)

    @pytest.mark.parametrize("plan", [True, False])
    def test_other_width(self, tmp_path: Path, plan: bool) -> None:
        out = self.converted(tmp_path)
        if not plan:
            (tmp_path / "b.plan.json").unlink()
        with pytest.raises(UsageError, match="channels"):
            dacconv.apply(torch_nets.SmallNet(width=4), out)

    def test_network_that_was_converted_already(self, tmp_path: Path) -> None:
        out = self.converted(tmp_path)
        net = dacconv.apply(torch_nets.SmallNet(), out)
        assert agree(net, dacconv.apply(net, out)) == 0

    def test_grouped_conv_split_as_a_plain_one(self, tmp_path: Path) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2))
        torch.save(net.state_dict(), tmp_path / "a.pth")
        out = convert(tmp_path / "a.pth", tmp_path / "b.pth", LoadOptions(vouched=("*",)))
        with pytest.raises(UsageError, match="grouped"):
            dacconv.apply(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2)), out)

    def test_other_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
        with pytest.raises(FormatError, match="state dict"):
            dacconv.apply(torch_nets.SmallNet(), tmp_path / "a.onnx")

    @pytest.mark.parametrize(
        "text", ["{", "[]", '{"record_version": 99, "modules": {}}', '{"record_version": 1}']
    )
    def test_damaged_plan(self, tmp_path: Path, text: str) -> None:
        out = self.converted(tmp_path)
        (tmp_path / "b.plan.json").write_text(text)
        if text == "[]":
            dacconv.apply(torch_nets.SmallNet(), out)  # no plan of ours: the keys tell
            return
        with pytest.raises(FormatError, match="plan"):
            dacconv.apply(torch_nets.SmallNet(), out)

    @pytest.mark.parametrize(
        "spec", [{}, {"type": "Conv2d"}, {"type": "system"}, 3, {"type": "Conv2d", "in": "x"}]
    )
    def test_damaged_layer_in_the_plan(self, tmp_path: Path, spec: object) -> None:
        out = self.converted(tmp_path)
        record = json.loads((tmp_path / "b.plan.json").read_text("utf-8"))
        record["modules"]["stem"] = spec
        (tmp_path / "b.plan.json").write_text(json.dumps(record))
        net = torch_nets.SmallNet()
        with pytest.raises(FormatError, match="stem"):
            dacconv.apply(net, out)
        assert type(net.wide) is nn.Conv2d


def test_written_safetensors_hold_every_layer(tmp_path: Path) -> None:
    out = convert(tensors(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", ARCH, merge=True)
    assert not [key for key in load_file(out) if key.startswith("bn")]
