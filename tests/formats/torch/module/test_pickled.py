from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_nets import DnCNN, ResNet20, eligible, randomized, relative, small_net, split_all

from dacconv.errors import FormatError, UnsupportedError, UsageError
from dacconv.formats import LoadOptions, open_model
from dacconv.fusions import find_fusions
from dacconv.graph.types import Choice, Plan
from tests.conftest import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
PLAN = Plan((Choice("stem", "dac", (25,)),))
SHAPE = (2, 3, 24, 24)
TRUSTED = LoadOptions(trust_pickle=True, input_shapes={"": SHAPE})

RUN_ALONE = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name == "dacconv" or name.startswith("dacconv."):
            raise ImportError("dacconv is not here")
sys.meta_path.insert(0, Gone())
sys.path.insert(0, sys.argv[1])
import numpy, torch
content = torch.load(sys.argv[2], weights_only=False)
net = content["model"] if isinstance(content, dict) else content
with torch.no_grad():
    y = net.eval()(torch.from_numpy(numpy.load(sys.argv[3])))
numpy.save(sys.argv[4], y.numpy())
"""


def saved(path: Path, net: nn.Module) -> Path:
    torch.save(net, path)
    return path


def agree(model: Any, other: Any) -> float:
    rng = np.random.default_rng(0)
    given = {s.name: rng.standard_normal(s.shape).astype(s.dtype) for s in model.inputs()}
    return relative(model.runner()(given)["output"], other.runner()(given)["output"])


def run_alone(path: Path, x: np.ndarray, folder: Path) -> np.ndarray:
    """The output of a pickled module in a process that cannot import dacconv."""
    np.save(folder / "x.npy", x)
    here = str(ROOT / "tests")
    subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            RUN_ALONE,
            here,
            path,
            folder / "x.npy",
            folder / "y.npy",
        ],
        check=True,
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    return np.load(folder / "y.npy")


def test_refused_by_name_without_trust(tmp_path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        open_model(saved(tmp_path / "a.pt", small_net()))
    told = str(caught.value)
    assert "plain_nets.SmallNet" in told
    assert "--trust-pickle" in told
    assert caught.value.exit_code == 3


class TestTrusted:
    @pytest.mark.parametrize("merged", [False, True])
    def test_loads_where_the_original_loads(self, tmp_path: Path, merged: bool) -> None:
        net = small_net()
        model = open_model(saved(tmp_path / "a.pt", net), TRUSTED)
        assert model.format == "module"
        assert len(eligible(model.graph())) == 5
        after = model.rewrite(find_fusions(model).rewrites) if merged else model
        after = split_all(after)
        assert agree(model, after) < 1e-5
        out = tmp_path / "b.pt"
        assert after.save(out, provenance={}, plan=PLAN) == (out, tmp_path / "b.plan.json")
        assert json.loads((tmp_path / "b.plan.json").read_text("utf-8"))["plan"]["layers"]
        x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
        with torch.no_grad():
            expected = net.eval()(torch.from_numpy(x))
        assert relative(expected, run_alone(out, x, tmp_path)) < 1e-5

    def test_training_flags_and_grads_are_kept(self, tmp_path: Path) -> None:
        net = small_net().train()
        net.reflect.eval()
        net.wide.requires_grad_(False)
        split_all(open_model(saved(tmp_path / "a.pt", net), TRUSTED)).save(
            tmp_path / "b.pt", provenance={}, plan=PLAN
        )
        after = torch.load(tmp_path / "b.pt", weights_only=False)
        assert after.training
        assert after.stem[0].training
        assert not after.reflect[0].training
        assert not any(p.requires_grad for p in after.wide.parameters())
        assert type(after.stem) is nn.Sequential
        assert not [k for m in after.modules() for k in vars(m) if "dacconv" in k]

    def test_twice_gives_the_same_bytes(self, tmp_path: Path) -> None:
        saved(tmp_path / "a.pt", small_net())
        for name in ("b.pt", "c.pt"):
            split_all(open_model(tmp_path / "a.pt", TRUSTED)).save(
                tmp_path / name, provenance={}, plan=PLAN
            )
        assert (tmp_path / "b.pt").read_bytes() == (tmp_path / "c.pt").read_bytes()

    def test_legacy_pickle(self, tmp_path: Path) -> None:
        torch.save(small_net(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
        model = open_model(tmp_path / "a.pt", TRUSTED)
        assert agree(model, split_all(model)) < 1e-5

    def test_data_parallel(self, tmp_path: Path) -> None:
        model = open_model(saved(tmp_path / "a.pt", nn.DataParallel(small_net())), TRUSTED)
        names = eligible(model.graph())
        assert names[0] == "module.stem"
        assert agree(model, split_all(model)) < 1e-5

    def test_arch_has_no_place(self, tmp_path: Path) -> None:
        given = LoadOptions(trust_pickle=True, arch="a:b")
        with pytest.raises(UsageError, match="--arch"):
            open_model(saved(tmp_path / "a.pt", small_net()), given)

    def test_bare_conv_has_nowhere_to_go(self, tmp_path: Path) -> None:
        model = open_model(saved(tmp_path / "a.pt", nn.Conv2d(3, 4, 3)), TRUSTED)
        assert "one layer" in str(model.graph().nodes[0].skip)


class TestContainer:
    def test_module_beside_other_things(self, tmp_path: Path) -> None:
        net = randomized(DnCNN(4, 8))
        torch.save({"epoch": 3, "model": net, "updates": None}, tmp_path / "a.pt")
        given = LoadOptions(trust_pickle=True, input_shapes={"": (1, 1, 20, 20)})
        with pytest.raises(FormatError, match="DnCNN"):
            open_model(tmp_path / "a.pt")
        model = open_model(tmp_path / "a.pt", given)
        out = tmp_path / "b.pt"
        assert split_all(model).save(out, provenance={"v": 1}, plan=PLAN) == (out,)
        after = torch.load(out, weights_only=False)
        assert list(after) == ["epoch", "model", "updates", "dacconv"]
        assert type(after["model"]) is DnCNN
        x = np.ones((1, 1, 20, 20), np.float32)
        with torch.no_grad():
            expected = net.eval()(torch.from_numpy(x))
        assert relative(expected, run_alone(out, x, tmp_path)) < 1e-5

    def test_several_need_a_key(self, tmp_path: Path) -> None:
        torch.save({"model": DnCNN(3, 4), "ema": DnCNN(3, 4)}, tmp_path / "a.pt")
        with pytest.raises(UsageError, match="model, ema"):
            open_model(tmp_path / "a.pt", TRUSTED)
        given = LoadOptions(trust_pickle=True, key="ema")
        model = open_model(tmp_path / "a.pt", given)
        assert any("model" in note for note in model.graph().notes)
        split_all(model).save(tmp_path / "b.pt", provenance={}, plan=PLAN)
        after = torch.load(tmp_path / "b.pt", weights_only=False)
        assert type(after["ema"].model[0]) is nn.Sequential
        assert type(after["model"].model[0]) is nn.Conv2d

    def test_lower_precision_runs_in_its_own(self, tmp_path: Path) -> None:
        given = LoadOptions(trust_pickle=True, input_shapes={"": (1, 3, 32, 32)})
        model = open_model(saved(tmp_path / "a.pt", randomized(ResNet20()).half()), given)
        assert model.inputs()[0].dtype == "float16"
        after = split_all(model)
        assert {p.dtype for p in after.module.parameters()} == {torch.float16}
        assert agree(model, after) < 5e-2


class Uncopyable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise RuntimeError("one of a kind")


def test_module_that_refuses_to_be_copied(tmp_path: Path) -> None:
    model = open_model(saved(tmp_path / "a.pt", Uncopyable()), TRUSTED)
    with pytest.raises(UnsupportedError, match="one of a kind"):
        model.graph()


class Lazy(nn.Module):
    """Keeps tensors and results of forward in plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.seen: torch.Tensor | None = None
        self.gain = nn.Parameter(torch.ones(1)) * 2  # not a leaf: refuses to be deep-copied

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.conv(x)
        return self.seen * self.gain


def test_what_forward_leaves_behind_is_not_saved() -> None:
    from dacconv.formats.torch.module.model import TracedModel

    net = Lazy()
    model = TracedModel(Path("x.pt"), TRUSTED, net)
    assert model.graph().node("conv").skip is None
    model.runner()({"x": np.zeros(SHAPE, np.float32)})
    after = split_all(model)
    assert net.seen is None
    assert after.module.seen is None
    assert after.module.gain is net.gain


class ByClass(nn.Module):
    """Passes its input by whatever is no conv."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                x = layer(x)
        return x


class BySize(nn.Module):
    """Doubles the output of a conv that is one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        once = len(list(self.modules())) == 2
        return self.conv(x) * 2 if once else self.conv(x)


@pytest.mark.parametrize(
    ("net", "why"), [(ByClass(), r"layers\.0"), (BySize(), "calls other functions")]
)
def test_code_that_treats_new_layers_differently(tmp_path: Path, net: nn.Module, why: str) -> None:
    model = open_model(saved(tmp_path / "a.pt", net), TRUSTED)
    with pytest.raises(UnsupportedError, match=why) as caught:
        split_all(model)
    assert "--skip" in str(caught.value)
