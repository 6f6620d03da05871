from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import shadow_nets
import torch
from shadow_nets import Holding, Shadowing
from torch import nn
from torch_nets import SmallNet, relative

import dacconv
from dacconv.errors import UsageError
from dacconv.formats.torch import members
from dacconv.jobs.convert import convert_file, inspect_file
from dacconv.settings import Settings

NAMES = [
    "modules", "named_modules", "children", "named_children", "parameters", "named_parameters",
    "buffers", "named_buffers", "state_dict", "load_state_dict", "eval", "train", "to", "float",
    "half", "apply", "get_submodule", "get_parameter", "requires_grad_", "type", "add_module",
]  # fmt: skip


class TestReads:
    """The same as torch's own methods, on a network that leaves those alone."""

    net = SmallNet()

    def test_modules(self) -> None:
        net = nn.Sequential(self.net, self.net, nn.Sequential(nn.ReLU()))
        net.register_module("none", None)
        assert list(members.named_modules(net)) == list(net.named_modules())
        every = list(net.named_modules(remove_duplicate=False))
        assert list(members.named_modules(net, duplicates=True)) == every
        assert list(members.modules(net)) == list(net.modules())
        assert list(members.named_children(self.net)) == list(self.net.named_children())

    def test_tensors(self) -> None:
        net = nn.Sequential(self.net, self.net)
        assert [id(p) for p in members.parameters(net)] == [id(p) for p in net.parameters()]
        mine = {name: id(tensor) for name, tensor in members.named_tensors(net)}
        theirs = [*net.named_parameters(remove_duplicate=False),
                  *net.named_buffers(remove_duplicate=False)]  # fmt: skip
        assert mine == {name: id(tensor) for name, tensor in theirs}

    def test_submodule(self) -> None:
        net = nn.Sequential(nn.Sequential(self.net))
        assert members.submodule(net, "0.0.stem") is self.net.stem
        assert members.submodule(net, "") is net
        with pytest.raises(AttributeError, match="'nothing'"):
            members.submodule(net, "0.nothing")


def test_own_methods_leaves_everything_as_it_was() -> None:
    net = Shadowing("modules", [1])
    net.body.eval = False
    before = pickle.dumps(net)
    with members.own_methods(net):
        net.body.eval()
        assert len(list(net.modules())) == 5
    assert net.modules == [1]
    assert net.body.eval is False
    assert not net.body.norm.training
    net.body.norm.train()
    net.body.conv.train()
    net.body.training = True
    assert pickle.dumps(net) == before


@pytest.mark.parametrize("name", NAMES)
def test_networks_with_attributes_named_as_torchs_methods(tmp_path: Path, name: str) -> None:
    net = shadow_nets.shadowing(name)
    with members.own_methods(net):
        torch.save(net.state_dict(), tmp_path / "a.pt")
    settings = Settings.of(
        arch=f"{shadow_nets.__file__}:shadowing", arch_arg=(f"name={name}",), samples=1,
        input_shape=("1,3,8,8",), rank=99, allow_costlier=True,
    )  # fmt: skip
    inspect_file(tmp_path / "a.pt", settings)
    convert_file(tmp_path / "a.pt", settings, output=tmp_path / "b.pt")
    made = dacconv.apply(shadow_nets.shadowing(name), tmp_path / "b.pt")
    assert type(made.body.norm) is nn.Identity
    assert getattr(made.body, name) == 3
    with members.own_methods(net):
        net.eval()
    with members.own_methods(made):
        made.eval()
    x = torch.randn(1, 3, 8, 8)
    assert relative(net(x).detach(), made(x).detach()) < 1e-5


@pytest.mark.parametrize("name", ["modules", "children", "parameters", "convs"])
def test_layers_that_a_plain_list_holds(tmp_path: Path, name: str) -> None:
    net = shadow_nets.holding(name)
    with members.own_methods(net):
        torch.save(net.state_dict(), tmp_path / "a.pt")
    settings = Settings.of(
        arch=f"{shadow_nets.__file__}:holding", arch_arg=(f"name={name}",), samples=1,
        input_shape=("1,3,8,8",), rank=1,
    )  # fmt: skip
    reasons = {row.name: row.reason for row in inspect_file(tmp_path / "a.pt", settings).rows}
    assert f"held in '{name}'" in (reasons["a"] or "")
    convert_file(tmp_path / "a.pt", settings, output=tmp_path / "b.pt")
    assert type(dacconv.apply(Holding(name), tmp_path / "b.pt").c) is nn.Sequential
    convert_file(tmp_path / "a.pt", Settings.of(rank=1), output=tmp_path / "c.pt")
    fresh = Holding(name)
    with pytest.raises(UsageError, match=f"'[ab]' of Holding is also held in '{name}'"):
        dacconv.apply(fresh, tmp_path / "c.pt")
    assert type(fresh.c) is nn.Conv2d
