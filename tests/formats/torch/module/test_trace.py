from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_nets import ResNet20, VGG16Probe, eligible, small_net

from dacconv.formats.torch.module.order import registered, symbolic
from dacconv.formats.torch.module.trace import Trace, trace
from dacconv.graph.cost import layer_cost
from dacconv.graph.types import Node

X = (2, 3, 12, 12)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


class Code(nn.Module):
    """A module whose forward is the test's own function of it and its input."""

    def __init__(self, code: Callable[[Any, torch.Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.code = code
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> Any:
        return self.code(self, x)


def conv(i: int = 3, o: int = 3, k: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **more)


def run(net: nn.Module, shape: tuple[int, ...] = X) -> Trace:
    return trace(net.eval(), (torch.randn(shape),), {}, ("x",))


def node(found: Trace, name: str) -> Node:
    return next(n for n in found.nodes if n.name == name)


def skips(found: Trace) -> dict[str, str | None]:
    return {n.name: n.skip for n in found.nodes if n.op == "conv"}


class TestOrderAndSizes:
    def test_order_of_execution_not_of_registration(self) -> None:
        net = Code(lambda s, x: s.a(F.relu(s.b(x))), a=conv(), b=conv())
        assert list(skips(run(net))) == ["b", "a"]

    def test_values_flow(self) -> None:
        net = Code(lambda s, x: torch.cat([s.a(x) + x, s.a(x) - x], 1), a=conv())
        found = run(net)
        assert [(n.name, n.op, n.inputs) for n in found.nodes] == [
            ("a", "conv", ("x",)),
            ("add", "add", ("a:0", "x")),
            ("a@2", "conv", ("x",)),
            ("sub", "add", ("a@2:0", "x")),
            ("cat", "concat", ("add:0", "sub:0")),
        ]
        assert node(found, "sub").attrs["coefficients"] == (1.0, -1.0)
        assert found.outputs == ("cat:0",)
        assert found.sites["a@2"] == "a"

    def test_sizes_and_parameters(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.Flatten(), nn.Linear(8 * 16, 4))
        found = run(net)
        geometry = node(found, "0").geometry
        assert geometry is not None
        assert geometry.batch == 2
        assert geometry.output_size == (4, 4)
        assert [n.params for n in found.nodes] == [8 * 75 + 8, 0, 4 * 128 + 4]

    def test_shared_module_counts_once(self) -> None:
        found = run(Code(lambda s, x: s.a(s.a(x)), a=conv()))
        assert [n.params for n in found.nodes] == [84, 0]
        assert len({n.weight for n in found.nodes}) == 1

    @pytest.mark.parametrize(
        ("net", "size", "macs"),
        [(ResNet20(), 32, 40_551_040 - 640), (VGG16Probe(), 224, 15_346_630_656)],
    )
    def test_known_costs(self, net: nn.Module, size: int, macs: int) -> None:
        found = run(net, (1, 3, size, size))
        convs = [n.geometry for n in found.nodes if n.op == "conv" and n.geometry]
        assert sum(layer_cost(g).macs or 0 for g in convs) == macs

    def test_names_of_calls(self) -> None:
        net = nn.Sequential(Code(lambda s, x: F.relu(s.r(x)), r=nn.ReLU()), nn.ReLU())
        assert [n.name for n in run(net).nodes] == ["0.r", "0.relu", "1"]

    def test_nothing_is_left_on_the_module(self) -> None:
        net = small_net().eval()
        before = {name: dict(vars(module)) for name, module in net.named_modules()}
        run(net)
        assert {name: dict(vars(module)) for name, module in net.named_modules()} == before
        assert not any(vars(p) for p in net.parameters())
        assert "__getattribute__" not in vars(nn.Conv2d)
        assert "__getattribute__" not in vars(nn.Conv2d.__base__)

    def test_error_that_the_model_catches(self) -> None:
        def code(s: Any, x: torch.Tensor) -> torch.Tensor:
            try:
                return s.a(s.b(x)[:, :1])
            except RuntimeError:
                return s.c(x)

        found = run(Code(code, a=conv(), b=conv(), c=conv()))
        assert [n.name for n in found.nodes if n.op == "conv"] == ["b", "c"]

    def test_error_leaves_no_hooks(self) -> None:
        def fail(self: Any, x: torch.Tensor) -> None:
            raise RuntimeError("no")

        for _ in range(2):
            with pytest.raises(RuntimeError, match="no"):
                run(Code(fail, a=conv()))
        assert len(run(Code(lambda s, x: s.a(x), a=conv())).nodes) == 1


class TestInPlace:
    def test_relu_makes_a_new_value(self) -> None:
        net = Code(lambda s, x: s.r(s.a(x)) + 1, a=conv(), r=nn.ReLU(inplace=True))
        found = run(net)
        assert node(found, "r").inputs == ("a:0",)
        assert node(found, "add").inputs == ("r:0",)

    def test_iadd(self) -> None:
        def code(s: Any, x: torch.Tensor) -> torch.Tensor:
            y = s.a(x)
            y += x
            return s.b(y)

        found = run(Code(code, a=conv(), b=conv()))
        assert node(found, "b").inputs == ("add:0",)
        assert node(found, "add").inputs == ("a:0", "x")

    def test_change_through_a_view(self) -> None:
        def code(s: Any, x: torch.Tensor) -> torch.Tensor:
            y = s.a(x)
            y.view(-1).mul_(2)
            return s.b(y)

        found = run(Code(code, a=conv(), b=conv()))
        source = next(n for n in found.nodes if n.output == node(found, "b").inputs[0])
        assert set(source.inputs) == {"a:0", "mul:0"}

    def test_setitem(self) -> None:
        def code(s: Any, x: torch.Tensor) -> torch.Tensor:
            y = s.a(x)
            y[:, 0] = 0
            return s.b(y)

        found = run(Code(code, a=conv(), b=conv()))
        assert node(found, "b").inputs != ("a:0",)


class TestUnderModes:
    @pytest.mark.parametrize("change", ["mul_", "setitem", "out", "iadd"])
    def test_inference_mode_counts_no_versions(self, change: str) -> None:
        @torch.inference_mode()
        def code(s: Any, x: torch.Tensor) -> torch.Tensor:
            y = s.a(x)
            if change == "mul_":
                y.mul_(2)
            elif change == "setitem":
                y[:, 0] = 0
            elif change == "out":
                torch.mul(y, 2, out=y)
            else:
                y += 1
            return s.b(y)

        found = run(Code(code, a=conv(), b=conv()))
        assert skips(found) == {"a": None, "b": None}
        assert node(found, "b").inputs != ("a:0",)

    def test_vmap(self) -> None:
        found = run(Code(lambda s, x: torch.vmap(lambda t: s.a(t[None])[0])(x), a=conv()))
        assert "a" in skips(found)


class TestLeftAlone:
    def test_functional(self) -> None:
        found = run(Code(lambda s, x: F.conv2d(x, s.a.weight) + s.b(x), a=conv(k=1), b=conv()))
        assert "functional" in str(node(found, "conv2d").skip)
        assert node(found, "b").skip is None

    def test_forward_called_directly(self) -> None:
        found = run(Code(lambda s, x: s.a.forward(x), a=conv()))
        assert all(skips(found).values())

    @pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
    def test_parametrized(self, norm: str) -> None:
        wrapped = getattr(nn.utils.parametrizations, norm)(conv())
        found = run(Code(lambda s, x: s.b(s.a(x)), a=wrapped, b=conv()))
        assert node(found, "b").skip is None
        assert all(s for n, s in skips(found).items() if n != "b")

    def test_spectral_norm_by_hook(self) -> None:
        found = run(Code(lambda s, x: s.a(x), a=nn.utils.spectral_norm(conv())))
        assert all(skips(found).values())

    def test_subclass_with_its_own_forward(self) -> None:
        class Standardized(nn.Conv2d):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return F.conv2d(x, self.weight - self.weight.mean(), self.bias)

        found = run(Code(lambda s, x: s.b(s.a(x)), a=Standardized(3, 3, 3), b=conv()))
        assert node(found, "b").skip is None
        assert all(s for n, s in skips(found).items() if n != "b")

    def test_subclass_that_adds_nothing(self) -> None:
        class Own(nn.Conv2d):
            pass

        assert "a Own" in str(next(iter(skips(run(nn.Sequential(Own(3, 3, 3)))).values())))

    def test_hooks(self) -> None:
        layer = conv()
        layer.register_forward_hook(lambda m, i, o: o * 2)
        assert "hooks" in str(next(iter(skips(run(nn.Sequential(layer))).values())))

    @pytest.mark.parametrize(
        "code",
        [
            lambda s, x: s.a(x) * s.a.weight.mean(),
            lambda s, x: s.a(x) + s.a.bias.sum(),
            lambda s, x: s.a(x.to(s.a.weight.dtype)),
            lambda s, x: s.a(x)[:, : s.a.in_channels],
        ],
        ids=["weight", "bias", "dtype", "attribute"],
    )
    def test_read_by_the_models_code(self, code: Any) -> None:
        assert node(run(Code(code, a=conv())), "a").skip

    def test_device_of_the_first_parameter_is_no_reader(self) -> None:
        net = Code(lambda s, x: s.a(x.to(next(s.parameters()).device)), a=conv())
        assert node(run(net), "a").skip is None

    def test_without_channels(self) -> None:
        with pytest.warns(UserWarning, match="zero-element"):
            layer = conv(3, 0)
        assert "no channels" in str(node(registered(nn.Sequential(layer)), "0").skip)
        found = symbolic(nn.Sequential(layer).eval())
        assert found is not None
        assert "no channels" in str(node(found, "0").skip)

    def test_weight_that_is_no_parameter(self) -> None:
        layer = conv(bias=False)
        weight = layer.weight.data
        del layer.weight
        layer.register_buffer("weight", weight)
        found = run(Code(lambda s, x: s.a(x), a=layer))
        assert [n.op for n in found.nodes] == ["conv"]
        assert found.nodes[0].skip

    def test_held_in_a_plain_list(self) -> None:
        net = Code(lambda s, x: s.layers[0](x), a=conv())
        net.layers = [net.a]
        assert "outside the module tree" in str(node(run(net), "a").skip)

    def test_tied_by_memory(self) -> None:
        net = Code(lambda s, x: s.b(s.a(x)), a=conv(), b=conv())
        net.b.weight = net.a.weight
        nodes = run(net).nodes
        assert nodes[0].weight == nodes[1].weight
        assert not any(n.skip for n in nodes)


class TestWhatCannotBeSeen:
    @pytest.mark.parametrize(
        "look",
        [lambda y: bool(y.sum() > 0), lambda y: y.mean().item(), lambda y: y.tolist(),
         lambda y: y.numpy().sum(), lambda y: int(y[0, 0, 0, 0]), lambda y: [1][y.int().min() * 0]],
        ids=["bool", "item", "tolist", "numpy", "int", "index"],
    )  # fmt: skip
    def test_code_that_looks_at_values(self, look: Callable[[torch.Tensor], object]) -> None:
        def code(s: Any, x: torch.Tensor) -> torch.Tensor:
            y = s.a(x)
            look(y)
            return s.n(y)

        found = run(Code(code, a=conv(), n=nn.BatchNorm2d(3)))
        assert "looks at values" in found.notes[0]
        assert node(found, "a").skip is None
        assert "looks at values" in str(node(found, "n").skip)

    def test_plain_code_has_no_notes(self) -> None:
        found = run(small_net(), (1, 3, 24, 24))
        assert found.notes == ()
        assert not any(n.skip for n in found.nodes)

    def test_scripted_parts(self) -> None:
        with pytest.warns(DeprecationWarning, match="torch.jit"):
            scripted = torch.jit.script(nn.ReLU())
        found = run(Code(lambda s, x: s.n(s.r(s.a(x))), a=conv(), r=scripted, n=nn.BatchNorm2d(3)))
        assert found.notes == ()  # the operators that it calls are seen
        assert node(found, "n").skip is None
        assert [n.kind for n in found.nodes if "a:0" in n.inputs] == ["relu"]

    def test_batch_norm_that_trains(self) -> None:
        class Always(nn.BatchNorm2d):
            def train(self, mode: bool = True) -> Any:
                return super().train(True)

        found = run(nn.Sequential(conv(), Always(3), nn.BatchNorm2d(3, track_running_stats=False)))
        assert {n.op for n in found.nodes} == {"conv", "other"}


class TestWithoutSizes:
    def test_symbolic(self) -> None:
        found = symbolic(small_net().eval())
        assert found is not None
        assert [n.name for n in found.nodes if n.op == "conv"] == [
            "stem", "same", "reflect", "wide", "holes", "depthwise",
        ]  # fmt: skip
        assert {n.op for n in found.nodes} >= {"affine", "add", "linear"}
        assert all(n.shape is None for n in found.nodes)

    def test_symbolic_sees_other_readers(self) -> None:
        found = symbolic(Code(lambda s, x: s.a(x) * s.a.weight.mean(), a=conv()))
        assert found is not None
        assert "also read" in str(node(found, "a").skip)

    def test_symbolic_gives_up_on_code_it_cannot_follow(self) -> None:
        assert symbolic(Code(lambda s, x: s.a(x) if x.sum() > 0 else x, a=conv())) is None

    def test_registered(self) -> None:
        net = Code(lambda s, x: s.b(s.a(x)), b=conv(), a=nn.utils.spectral_norm(conv()))
        found = registered(net)
        assert [n.name for n in found.nodes] == ["b", "a"]
        assert "hooks" in str(node(found, "a").skip)


def test_eligible_helper_agrees(shared_data: Path) -> None:
    found = run(ResNet20(), (1, 3, 32, 32))
    graph = type("G", (), {"nodes": found.nodes})
    assert len(eligible(graph)) == 19  # type: ignore[arg-type]
