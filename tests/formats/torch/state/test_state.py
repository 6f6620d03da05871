from __future__ import annotations

import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_nets
from safetensors.torch import load_file, save_file
from torch import nn
from torch_nets import eligible, relative, small_net, split, split_all

from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats import LoadOptions, open_model
from dacconv.fusions import find_fusions
from dacconv.graph.types import Choice, Plan, Rewrite

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
PLAN = Plan((Choice("stem", "dac", (25,)),))
NETS = f"{torch_nets.__file__}:"
SHAPE = (2, 3, 24, 24)


def options(factory: str = "small_net", shape: tuple[int, ...] | None = SHAPE, **more: Any) -> Any:
    shapes = {} if shape is None else {"": shape}
    return LoadOptions(arch=f"{NETS}{factory}", input_shapes=shapes, **more)


def feeds(model: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {s.name: rng.standard_normal(s.shape).astype(s.dtype) for s in model.inputs()}


def agree(model: Any, other: Any) -> float:
    given = feeds(model)
    a, b = model.runner()(given), other.runner()(given)
    assert list(a) == list(b)
    return max(relative(a[name], b[name]) for name in a)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    torch.save(small_net().state_dict(), tmp_path / "a.pth")
    return tmp_path / "a.pth"


def written(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(text)
    return f"{folder / name}:make"


class TestSplit:
    def test_exact_at_full_rank(self, bare: Path) -> None:
        model = open_model(bare, options())
        assert model.format == "state_dict"
        assert model.graph().order == "execution"
        assert eligible(model.graph()) == ["stem", "same", "reflect", "wide", "holes"]
        after = split_all(model)
        assert agree(model, after) < 1e-5
        assert [n.name for n in after.graph().nodes if n.op == "conv"][:2] == ["stem.0", "stem.1"]

    @pytest.mark.parametrize(
        ("name", "net", "shape"),
        [
            ("cifar10/resnet20.th", "ResNet20", (2, 3, 32, 32)),
            ("cifar10/vgg16_probe.pth", "VGG16Probe", (1, 3, 64, 64)),
            ("denoise/dncnn_25.pth", "DnCNN", (1, 1, 40, 40)),
        ],
    )
    def test_real_files(
        self, shared_data: Path, tmp_path: Path, name: str, net: str, shape: tuple[int, ...]
    ) -> None:
        model = open_model(shared_data / name, options(net, shape))
        after = split_all(model)
        assert agree(model, after) < 1e-5
        out = tmp_path / Path(name).name
        after.save(out, provenance={}, plan=PLAN)
        assert agree(model, open_model(out, options(net, shape))) < 1e-5

    def test_batch_norm_merged_first(self, bare: Path, tmp_path: Path) -> None:
        model = open_model(bare, options())
        merged = model.rewrite(find_fusions(model).rewrites)
        assert not [n for n in merged.graph().nodes if n.op == "affine"]
        after = split_all(merged)
        assert agree(model, after) < 1e-5
        after.save(tmp_path / "b.pth", provenance={}, plan=PLAN)
        assert not [
            k for k in torch.load(tmp_path / "b.pth", weights_only=True) if k.startswith("bn")
        ]
        assert agree(model, open_model(tmp_path / "b.pth", options())) < 1e-5

    def test_the_original_stays_as_it_was(self, bare: Path) -> None:
        model = open_model(bare, options())
        given = feeds(model)
        before = model.runner()(given)["output"]
        split_all(model)
        assert (model.runner()(given)["output"] == before).all()
        assert type(model.module.stem) is nn.Conv2d

    def test_lower_precision_in_the_file_shows_when_it_runs(self, tmp_path: Path) -> None:
        state = {
            k: v.half() if v.is_floating_point() else v for k, v in small_net().state_dict().items()
        }
        torch.save(state, tmp_path / "a.pth")
        model = open_model(tmp_path / "a.pth", options())
        after = split_all(model)
        after.save(tmp_path / "b.pth", provenance={}, plan=PLAN)
        loaded = torch.load(tmp_path / "b.pth", weights_only=True)
        assert loaded["stem.0.weight"].dtype == torch.float16
        assert agree(after, open_model(tmp_path / "b.pth", options())) == 0
        assert 1e-6 < agree(model, after) < 1e-2

    def test_frozen_and_evaluated_layers_stay_so(self, bare: Path, tmp_path: Path) -> None:
        arch = written(
            tmp_path,
            "from torch_nets import small_net\n"
            "def make():\n    net = small_net()\n    net.stem.requires_grad_(False)\n"
            "    net.wide.eval()\n    return net\n",
        )
        model = open_model(bare, LoadOptions(arch=arch, input_shapes={"": SHAPE}))
        after = split_all(model).module
        assert not any(p.requires_grad for p in after.stem.parameters())
        assert all(p.requires_grad for p in after.same.parameters())
        assert not after.wide.training
        assert after.wide[0].training is False
        assert after.same[1].training


class TestContainer:
    def test_bare_keeps_type_metadata_and_order(self, bare: Path, tmp_path: Path) -> None:
        split_all(open_model(bare, options())).save(tmp_path / "b.pth", provenance={}, plan=PLAN)
        state = torch.load(tmp_path / "b.pth", weights_only=True)
        assert type(state) is OrderedDict
        assert list(state)[:4] == ["stem.0.weight", "stem.1.weight", "stem.1.bias", "bn.weight"]
        assert state._metadata["stem.1"] == {"version": 1}
        record = json.loads((tmp_path / "b.plan.json").read_text("utf-8"))
        assert record["modules"]["same"]["layers"][0]["padding"] == "same"

    def test_nested_with_a_prefix(self, tmp_path: Path) -> None:
        state = {f"module.{k}": v for k, v in small_net().state_dict().items()}
        torch.save({"epoch": 7, "state_dict": state, "best": torch.tensor(1.0)}, tmp_path / "a.th")
        model = open_model(tmp_path / "a.th", options())
        assert next(n.name for n in model.graph().nodes) == "stem"
        split_all(model).save(tmp_path / "b.th", provenance={"v": 1}, plan=PLAN)
        after = torch.load(tmp_path / "b.th", weights_only=True)
        assert list(after) == ["epoch", "state_dict", "best", "dacconv"]
        assert after["epoch"] == 7
        assert "module.stem.0.weight" in after["state_dict"]
        assert after["dacconv"]["provenance"] == {"v": 1}

    def test_only_part_of_the_file_is_the_network(self, tmp_path: Path) -> None:
        state = {f"model.net.{k}": v for k, v in small_net().state_dict().items()}
        torch.save({"state_dict": {**state, "loss.scale": torch.ones(1)}}, tmp_path / "a.ckpt")
        model = open_model(tmp_path / "a.ckpt", options())
        assert any("loss.scale" in note for note in model.graph().notes)
        split_all(model).save(tmp_path / "b.ckpt", provenance={}, plan=PLAN)
        assert "loss.scale" in torch.load(tmp_path / "b.ckpt", weights_only=True)["state_dict"]

    def test_safetensors(self, tmp_path: Path) -> None:
        save_file(small_net().state_dict(), tmp_path / "a.safetensors", {"format": "pt"})
        model = open_model(tmp_path / "a.safetensors", options())
        out = tmp_path / "b.safetensors"
        assert split_all(model).save(out, provenance={}, plan=PLAN) == (out,)
        assert "stem.1.bias" in load_file(out)
        assert agree(model, open_model(out, options())) < 1e-5

    def test_legacy_is_written_as_zip_and_says_so(self, tmp_path: Path) -> None:
        path = tmp_path / "a.pth"
        torch.save(small_net().state_dict(), path, _use_new_zipfile_serialization=False)
        model = open_model(path, options())
        assert any("before 1.6" in note for note in model.graph().notes)
        split_all(model).save(tmp_path / "b.pth", provenance={}, plan=PLAN)
        assert (tmp_path / "b.pth").read_bytes()[:2] == b"PK"

    def test_without_num_batches_tracked(self, tmp_path: Path) -> None:
        state = small_net().state_dict()
        del state["bn.num_batches_tracked"]
        torch.save(state, tmp_path / "a.pth")
        split_all(open_model(tmp_path / "a.pth", options())).save(
            tmp_path / "b.pth", provenance={}, plan=PLAN
        )
        assert "bn.num_batches_tracked" not in torch.load(tmp_path / "b.pth", weights_only=True)

    def test_same_bytes_again(self, bare: Path, tmp_path: Path) -> None:
        for name in ("b.pth", "c.pth"):
            split_all(open_model(bare, options())).save(tmp_path / name, provenance={}, plan=PLAN)
        assert (tmp_path / "b.pth").read_bytes() == (tmp_path / "c.pth").read_bytes()


TIED = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3, padding=1)
        self.b = nn.Conv2d(3, 3, 3, stride=2)
        self.b.weight = self.a.weight
        self.alias = self.a
    def forward(self, x):
        return self.b(self.alias(self.a(x)))
def make():
    return Net()
"""


class TestShared:
    def test_module_under_two_names_and_tied_weight(self, tmp_path: Path) -> None:
        arch = written(tmp_path, TIED, "tied_net.py")
        sys.path.insert(0, str(tmp_path))
        try:
            from tied_net import Net  # type: ignore[import-not-found]

            torch.save(Net().state_dict(), tmp_path / "a.pth")
            given = LoadOptions(arch=arch, input_shapes={"": SHAPE})
            model = open_model(tmp_path / "a.pth", given)
            convs = [n for n in model.graph().nodes if n.op == "conv"]
            assert [n.name for n in convs] == ["a", "a@2", "b"]
            assert len({n.weight for n in convs}) == 1
            after = split_all(model)
            assert after.module.alias is after.module.a
            assert after.module.a[0].weight is after.module.b[0].weight
            assert agree(model, after) < 1e-5
            after.save(tmp_path / "b.pth", provenance={}, plan=PLAN)
            state = torch.load(tmp_path / "b.pth", weights_only=True)
            assert len({t.data_ptr() for k, t in state.items() if k.endswith("0.weight")}) == 1
            assert agree(model, open_model(tmp_path / "b.pth", given)) < 1e-5
        finally:
            sys.path.remove(str(tmp_path))

    def test_one_call_of_two_cannot_be_edited_alone(self, tmp_path: Path) -> None:
        arch = written(tmp_path, TIED, "tied_net2.py")
        model = open_model(
            _saved_by(arch, tmp_path), LoadOptions(arch=arch, input_shapes={"": SHAPE})
        )
        node = model.graph().node("a@2")
        with pytest.raises(UnsupportedError, match="also called as 'a'"):
            model.rewrite([Rewrite("a@2", node.inputs[0], split(model.conv("a@2")))])


def _saved_by(arch: str, folder: Path) -> Path:
    from dacconv.formats.torch.arch import build

    torch.save(build(arch, {}).state_dict(), folder / "state.pth")
    return folder / "state.pth"


class TestEdits:
    def test_sum_of_branches_is_refused_beforehand(self, bare: Path) -> None:
        model = open_model(bare, options())
        conv = model.conv("stem")
        edit = Rewrite("stem", "x", ((conv,), (conv,)))
        assert "several branches" in str(model.rewrite_refusal(edit))
        with pytest.raises(UnsupportedError, match="several branches"):
            model.rewrite([edit])

    def test_wrong_names(self, bare: Path) -> None:
        model = open_model(bare, options())
        conv = model.conv("stem")
        assert model.rewrite_refusal(Rewrite("nothing", "x", ((conv,),)))
        assert model.rewrite_refusal(Rewrite("stem", "other", ((conv,),)))
        assert model.rewrite_refusal(Rewrite("relu", "bn:0", ((conv,),)))
        assert model.rewrite_refusal(Rewrite("bn", "stem:0", ((conv,),)))
        with pytest.raises(UnsupportedError):
            model.conv("relu")
        with pytest.raises(UnsupportedError):
            model.conv("nothing")
        with pytest.raises(UnsupportedError):
            model.affine("stem")


class TestSizes:
    def test_without_a_shape_the_order_is_symbolic(self, bare: Path) -> None:
        model = open_model(bare, options(shape=None))
        graph = model.graph()
        assert graph.order == "execution"
        assert "--input-shape" in graph.notes[-1]
        assert "--input-shape" in str(model.runnable)
        assert graph.node("stem").geometry.output_size is None
        with pytest.raises(UnsupportedError, match="--input-shape"):
            model.runner()
        given = options()
        assert agree(open_model(bare, given), _with_shape(split_all(model), given)) < 1e-5

    def test_registration_where_code_cannot_be_followed(self, tmp_path: Path) -> None:
        arch = written(
            tmp_path,
            "from torch import nn\nclass Net(nn.Module):\n"
            "    def __init__(self):\n        super().__init__()\n"
            "        self.a = nn.Conv2d(3, 4, 3)\n"
            "    def forward(self, x):\n        return self.a(x) if x.sum() > 0 else x\n"
            "def make():\n    return Net()\n",
            "branchy.py",
        )
        model = open_model(_saved_by(arch, tmp_path), LoadOptions(arch=arch))
        assert model.graph().order == "registration"
        assert "registered" in model.graph().notes[-1]

    def test_wrong_shape_is_told_with_the_place(self, bare: Path) -> None:
        model = open_model(bare, options(shape=(1, 4, 24, 24)))
        with pytest.raises(UsageError, match=r"x 1x4x24x24") as caught:
            model.graph()
        assert "RuntimeError" in str(caught.value)
        assert "plain_nets.py:" in str(caught.value)

    def test_unknown_input_name(self, bare: Path) -> None:
        given = LoadOptions(arch=f"{NETS}small_net", input_shapes={"image": SHAPE})
        with pytest.raises(UsageError, match="no input 'image'"):
            open_model(bare, given).graph()

    def test_several_inputs(self, tmp_path: Path) -> None:
        arch = written(
            tmp_path,
            "from torch import nn\nclass Net(nn.Module):\n"
            "    def __init__(self):\n        super().__init__()\n"
            "        self.a = nn.Conv2d(3, 4, 3)\n"
            "    def forward(self, image, mask, gain=1.0, *, extra=None):\n"
            "        out = self.a(image * mask)\n"
            "        return {'out': out if extra is None else out + extra, 'all': [mask, out]}\n"
            "def make():\n    return Net()\n",
            "pairs.py",
        )
        state = _saved_by(arch, tmp_path)
        shapes = {"": (1, 3, 8, 8), "mask": (1, 1, 8, 8)}
        model = open_model(state, LoadOptions(arch=arch, input_shapes=shapes))
        assert [s.name for s in model.inputs()] == ["image", "mask"]
        assert list(model.runner(threads=1)(feeds(model))) == ["out", "all", "all_1"]
        shapes["extra"] = (1, 4, 6, 6)
        model = open_model(state, LoadOptions(arch=arch, input_shapes=shapes))
        assert agree(model, split_all(model)) < 1e-5
        with pytest.raises(UsageError, match="no shape for input 'mask'"):
            open_model(state, LoadOptions(arch=arch, input_shapes={"": (1, 3, 8, 8)})).graph()


def _with_shape(model: Any, given: LoadOptions) -> Any:
    from dataclasses import replace

    return replace(model, options=given)


class TestArch:
    """The user's own mistakes, each told as his in one message."""

    def check(self, bare: Path, arch: str, *parts: str, **arguments: Any) -> str:
        with pytest.raises(UsageError) as caught:
            open_model(bare, LoadOptions(arch=arch, arch_args=arguments))
        for part in parts:
            assert part in str(caught.value)
        assert caught.value.exit_code == 2
        return str(caught.value)

    def test_arguments(self, tmp_path: Path) -> None:
        torch.save(torch_nets.DnCNN(4, 8).state_dict(), tmp_path / "a.pth")
        model = open_model(
            tmp_path / "a.pth", LoadOptions(arch=f"{NETS}DnCNN", arch_args={"depth": 4, "width": 8})
        )
        assert len(eligible(model.graph())) == 4

    def test_module_path(self, bare: Path) -> None:
        assert open_model(bare, LoadOptions(arch="torch_nets:SmallNet")).graph().nodes

    def test_no_factory(self, bare: Path) -> None:
        self.check(bare, "mynets", "package.module:factory")

    def test_no_such_file(self, bare: Path) -> None:
        self.check(bare, "nowhere.py:make", "no such file", "nowhere.py")

    def test_no_such_module(self, bare: Path) -> None:
        self.check(bare, "nowhere.at.all:make", "ModuleNotFoundError", "nowhere")

    def test_no_such_attribute(self, bare: Path) -> None:
        self.check(bare, f"{NETS}ResNet21", "ResNet21", "ResNet20")

    def test_syntax_error(self, bare: Path, tmp_path: Path) -> None:
        self.check(bare, written(tmp_path, "def make(:\n", "syn.py"), "SyntaxError", "syn.py:1")

    def test_import_that_raises(self, bare: Path, tmp_path: Path) -> None:
        arch = written(tmp_path, "x = 1\nraise ValueError('not today')\n", "imp.py")
        self.check(bare, arch, "ValueError: not today", "imp.py:2")

    def test_import_that_exits(self, bare: Path, tmp_path: Path) -> None:
        self.check(bare, written(tmp_path, "import sys\nsys.exit(3)\n", "exi.py"), "SystemExit: 3")

    def test_factory_that_raises(self, bare: Path, tmp_path: Path) -> None:
        arch = written(tmp_path, "def make():\n    return {}['key']\n", "fac.py")
        self.check(bare, arch, "KeyError", "fac.py:2")

    def test_wrong_arguments(self, bare: Path) -> None:
        self.check(bare, f"{NETS}SmallNet", "TypeError", "hidden", "--arch-arg", hidden=3)

    @pytest.mark.parametrize(("value", "told"), [("None", "None"), ("[1]", "a list")])
    def test_no_module(self, bare: Path, tmp_path: Path, value: str, told: str) -> None:
        arch = written(tmp_path, f"def make():\n    return {value}\n", f"no{len(value)}.py")
        self.check(bare, arch, f"returned {told}")

    def test_not_callable(self, bare: Path, tmp_path: Path) -> None:
        self.check(bare, written(tmp_path, "make = 3\n", "cal.py"), "no function")

    def test_keys_that_do_not_match(self, bare: Path) -> None:
        told = self.check(bare, f"{NETS}ResNet20", "missing from the file", "in the architecture")
        assert "conv1.weight" in told
        assert "stem.weight" in told
        assert "in all)" in told

    def test_shapes_that_do_not_match(self, bare: Path) -> None:
        told = self.check(bare, f"{NETS}SmallNet", "of another shape", width=4)
        assert "stem.weight is 8x3x5x5, not 4x3x5x5" in told

    def test_prints_go_to_stderr(
        self, bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arch = written(
            tmp_path,
            "from torch_nets import SmallNet\nprint('hello')\n"
            "def make():\n    print('building')\n    return SmallNet()\n",
            "chatty.py",
        )
        open_model(bare, LoadOptions(arch=arch))
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "hello" in captured.err
        assert "building" in captured.err

    def test_module_that_holds_itself(self, bare: Path, tmp_path: Path) -> None:
        arch = written(
            tmp_path,
            "from torch import nn\ndef make():\n    a = nn.Sequential(nn.Conv2d(3, 4, 3))\n"
            "    a.add_module('me', a)\n    return a\n",
            "loop.py",
        )
        with pytest.raises(UnsupportedError, match="contains itself"):
            open_model(bare, LoadOptions(arch=arch))
