from __future__ import annotations

import json
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch_nets import DnCNN, ResNet20, VGG16Probe, eligible, split_all

from dacconv.errors import FormatError, UnsupportedError, UsageError
from dacconv.formats import LoadOptions, open_model
from dacconv.graph.types import Choice, Conv, Plan, Rewrite
from dacconv.jobs.convert import convert_file, inspect_file
from dacconv.reports.words import row_cells
from dacconv.settings import Settings

PLAN = Plan((Choice("0", "dac", (9,)),))


def saved(path: Path, **shapes: tuple[int, ...]) -> Path:
    """A state dict with tensors of these shapes, names with ``__`` for the dots."""
    generator = torch.Generator().manual_seed(0)
    torch.save(
        {
            name.replace("__", "."): torch.randn(shape, generator=generator)
            for name, shape in shapes.items()
        },
        path,
    )
    return path


def reasons(path: Path, *vouched: str) -> dict[str, str | None]:
    nodes = open_model(path, LoadOptions(vouched=vouched)).graph().nodes
    return {node.name: node.skip for node in nodes if node.op == "conv"}


class TestSure:
    def test_chain_from_an_image(self, tmp_path: Path) -> None:
        path = saved(
            tmp_path / "a.pt",
            c1__weight=(8, 3, 3, 3), c1__bias=(8,), c2__weight=(16, 8, 3, 3),
            c3__weight=(4, 24, 5, 5),
        )  # fmt: skip
        assert reasons(path) == {"c1": None, "c2": None, "c3": None}

    @pytest.mark.parametrize(
        ("name", "shapes", "why"),
        [
            ("d", {"d__weight": (8, 1, 3, 3)}, "depthwise"),
            ("g", {"g__weight": (8, 5, 3, 3)}, "grouped"),
            ("deconv1", {"deconv1__weight": (8, 8, 3, 3)}, "transposed"),
            ("up", {"up__weight": (8, 8, 3, 3)}, "transposed"),
            ("up1.conv", {"up1__conv__weight": (8, 8, 3, 3)}, "transposed"),
            ("convtranspose", {"convtranspose__weight": (8, 8, 3, 3)}, "transposed"),
            ("x", {"x__weight": (8, 8, 3, 3), "x__bias": (3,)}, "length of its bias"),
            ("t", {"t__weight": (8, 8, 2, 2)}, "2x2"),
        ],
    )
    def test_doubts(
        self, tmp_path: Path, name: str, shapes: dict[str, tuple[int, ...]], why: str
    ) -> None:
        path = saved(tmp_path / "a.pt", c1__weight=(8, 3, 3, 3), **shapes)
        found = reasons(path)
        assert found["c1"] is None
        assert why in str(found[name])
        assert "--layers" in str(found[name])
        assert reasons(path, name) == {"c1": None, name: None}

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    @pytest.mark.parametrize("kernel", [2, 3, 4, 5])
    @pytest.mark.parametrize("name", ["body.4", "layers.up_block.conv", "decoder.conv", "x"])
    def test_as_many_outputs_as_inputs(
        self, tmp_path: Path, name: str, kernel: int, suffix: str
    ) -> None:
        """The weight of a transposed conv has the same shape then; a bias shows nothing."""
        shapes = {
            "body.0.weight": (16, 3, 3, 3), "body.0.bias": (16,),
            f"{name}.weight": (16, 16, kernel, kernel), f"{name}.bias": (16,),
            "tail.weight": (3, 16, 3, 3), "tail.bias": (3,),
        }  # fmt: skip
        path = saved(tmp_path / "a.pt", **shapes)
        if suffix == ".safetensors":
            save_file(torch.load(path), tmp_path / "a.safetensors")
            path = tmp_path / "a.safetensors"
        found = reasons(path)
        assert found["body.0"] is None
        assert found["tail"] is None
        assert "transposed" in str(found[name])
        assert "--arch" in str(found[name])
        assert "--layers" in str(found[name])
        assert reasons(path, name)[name] is None

    def test_a_loop_of_convs(self, tmp_path: Path) -> None:
        """So many transposed convs would double the image without end; the last may be one."""
        row = {f"body__{2 * i}__weight": (16, 16, 3, 3) for i in range(1, 9)}
        first, last = {"body__0__weight": (16, 3, 3, 3)}, {"body__18__weight": (3, 16, 3, 3)}
        assert not any(reasons(saved(tmp_path / "a.pt", **first, **row, **last)).values())
        for end in ({"tail__weight": (3, 16, 3, 3)}, {"body__19__weight": (3, 16, 3, 3)},
                    {"body__18__weight": (3, 16, 5, 5)}):  # fmt: skip
            found = reasons(saved(tmp_path / "b.pt", **first, **row, **end))
            assert [name for name, reason in found.items() if reason] == ["body.16"]
        even = dict.fromkeys(row, (16, 16, 4, 4)) | {"body__18__weight": (3, 16, 4, 4)}
        biases = {name.replace("weight", "bias"): shape[:1] for name, shape in even.items()}
        found = reasons(saved(tmp_path / "c.pt", **first, **even, **biases))
        assert "transposed" in str(found["body.16"])
        assert found["body.14"] is None

    def test_too_few_in_a_row(self, tmp_path: Path) -> None:
        row = {f"body__{2 * i}__weight": (16, 16, 3, 3) for i in range(1, 5)}
        found = reasons(saved(tmp_path / "a.pt", body__0__weight=(16, 3, 3, 3), **row))
        assert sum(reason is not None for reason in found.values()) == 4

    def test_the_same_layer_of_many_blocks(self, tmp_path: Path) -> None:
        blocks = {f"body__{i}__{k}__weight": (16, 16, 3, 3) for i in range(5) for k in "ab"}
        assert not any(
            reasons(saved(tmp_path / "a.pt", c__weight=(16, 3, 3, 3), **blocks)).values()
        )

    @pytest.mark.parametrize(
        ("names", "sure"),
        [
            (("c1", "x", "fc"), True),
            (("c1", "fc", "x"), False),  # an autoencoder: what follows may enlarge
            (("c1", "up1", "x", "fc"), False),
            (("c1", "decoder.0", "x", "fc"), False),
            (("c1", "conv2"), True),
            (("c1", "body.conv"), True),
            (("c1", "decoder.conv2"), False),
            (("c1", "x.conv.3"), False),
        ],
    )
    def test_classifiers_and_names(
        self, tmp_path: Path, names: tuple[str, ...], sure: bool
    ) -> None:
        shapes = {"c1": (16, 3, 3, 3), "fc": (10, 16)}
        path = saved(
            tmp_path / "a.pt", **{f"{n}.weight": shapes.get(n, (16, 16, 3, 3)) for n in names}
        )
        name = next((n for n in reversed(names) if n not in shapes), "")
        assert (reasons(path)[name] is None) == sure

    @pytest.mark.parametrize(("length", "sure"), [(32, True), (16, False)])
    @pytest.mark.parametrize("leaf", ["bias", "running_mean"])
    def test_lengths_settle_other_shapes(
        self, tmp_path: Path, leaf: str, length: int, sure: bool
    ) -> None:
        owner = "x" if leaf == "bias" else "norm"
        path = saved(
            tmp_path / "a.pt", c1__weight=(16, 3, 3, 3), c2__weight=(32, 16, 3, 3),
            x__weight=(32, 16, 3, 3), **{f"{owner}.{leaf}": (length,)},
        )  # fmt: skip
        assert (reasons(path)["x"] is None) == sure

    def test_first_that_takes_no_image(self, tmp_path: Path) -> None:
        assert "64 channels" in str(reasons(saved(tmp_path / "a.pt", c__weight=(8, 64, 3, 3)))["c"])

    @pytest.mark.parametrize("name", ["group.conv", "supper", "upper.conv", "transition1.conv"])
    def test_names_that_only_look_transposed(self, tmp_path: Path, name: str) -> None:
        shapes = {f"{name}.weight": (16, 8, 3, 3)}
        path = saved(tmp_path / "a.pt", c1__weight=(8, 3, 3, 3), **shapes)
        assert reasons(path)[name] is None

    def test_other_tensors_are_no_convs(self, tmp_path: Path) -> None:
        path = saved(
            tmp_path / "a.pt",
            c__weight=(8, 3, 3, 3), table=(1, 8, 7, 7), fc__weight=(5, 8), bn__weight=(8,),
            bn__bias=(8,), bn__running_mean=(8,), bn__running_var=(8,), conv1d__weight=(4, 4, 3),
        )  # fmt: skip
        graph = open_model(path).graph()
        assert {n.name: n.op for n in graph.nodes if n.op == "conv"} == {"c": "conv"}
        assert {n.kind for n in graph.nodes} >= {"BatchNorm", "2-D weight", "3-D weight", "tensors"}
        assert sum(n.params for n in graph.nodes) == 8 * 27 + 8 * 49 + 40 + 16 + 48

    def test_integer_weights_are_no_convs(self, tmp_path: Path) -> None:
        torch.save(
            {"q.weight": torch.zeros(8, 3, 3, 3, dtype=torch.int8), "f.weight": torch.ones(2, 2)},
            tmp_path / "a.pt",
        )
        assert reasons(tmp_path / "a.pt") == {}

    @pytest.mark.parametrize(
        ("name", "count"),
        [
            ("cifar10/resnet20.th", 19),
            ("cifar10/vgg16_probe.pth", 13),
            ("denoise/dncnn_25.pth", 17),
        ],
    )
    def test_real_files_are_sure(self, shared_data: Path, name: str, count: int) -> None:
        graph = open_model(shared_data / name, LoadOptions(arch="none")).graph()
        assert len(eligible(graph)) == count
        assert not any(n.skip for n in graph.nodes)


def test_sorted_safetensors_say_so_and_are_judged_without_their_order(tmp_path: Path) -> None:
    net = nn.Sequential(OrderedDict(
        stem=nn.Conv2d(3, 8, 3), body=nn.Conv2d(8, 16, 3), dw=nn.Conv2d(16, 16, 3, groups=16),
        a=nn.Conv2d(20, 8, 3, groups=4),
    ))  # fmt: skip
    save_file(net.state_dict(), tmp_path / "a.safetensors")
    graph = open_model(tmp_path / "a.safetensors").graph()
    assert any("sorted by name" in note for note in graph.notes)
    skips = {n.name: n.skip for n in graph.nodes}
    assert skips["stem"] is None
    assert skips["body"] is None
    assert "depthwise" in str(skips["dw"])
    assert "5 channels" in str(skips["a"])


@pytest.mark.parametrize(
    ("weight", "why"),
    [
        (torch.zeros(0, 3, 3, 3), "no channels"),
        (torch.zeros(4, 0, 3, 3), "no channels"),
        (torch.zeros(4, 3, 3, 3, device="meta"), "no data"),
        (torch.zeros(4, 3, 3, 3).to(torch.float8_e4m3fn), "float8"),
        (torch.zeros(4, 3, 3, 3).to_sparse(), "sparse"),
    ],
    ids=["no outputs", "no inputs", "meta", "float8", "sparse"],
)
def test_weights_that_no_vouching_helps(tmp_path: Path, weight: torch.Tensor, why: str) -> None:
    content = {"a.weight": weight, "b.weight": torch.ones(4, 3, 3, 3)}
    torch.save(content, tmp_path / "a.pt")
    found = reasons(tmp_path / "a.pt", "*")
    assert why in str(found["a"])
    split_all(open_model(tmp_path / "a.pt", LoadOptions(vouched=("b",)))).save(
        tmp_path / "b.pt", provenance={}, plan=PLAN
    )
    assert list(torch.load(tmp_path / "b.pt", weights_only=True)) == [
        "a.weight", "b.0.weight", "b.1.weight",
    ]  # fmt: skip


def test_file_that_is_one_layer(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(3, 4, 3).state_dict(), tmp_path / "a.pt")
    assert "one layer" in str(reasons(tmp_path / "a.pt", "*")["(top)"])


class TestModel:
    def test_says_what_it_cannot_know(self, tmp_path: Path) -> None:
        model = open_model(saved(tmp_path / "a.pt", c__weight=(8, 3, 3, 3)))
        graph = model.graph()
        assert model.format == "weights"
        assert graph.order == "file"
        assert "strides" in graph.notes[0]
        assert graph.nodes[0].geometry is not None
        assert graph.nodes[0].geometry.output_size is None
        assert "--arch" in str(model.runnable)
        with pytest.raises(UnsupportedError, match="--arch"):
            model.runner()
        with pytest.raises(UnsupportedError):
            model.affine("c")
        with pytest.raises(UnsupportedError):
            model.conv("nothing")

    def test_what_it_cannot_know_is_null_in_reports(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "a.pt", c__weight=(8, 3, 3, 3), d__weight=(16, 8, 3, 3))
        inspected = inspect_file(path, Settings.of())
        converted = convert_file(path, Settings.of(rank=1), output=tmp_path / "b.pt").report
        for report in (inspected, converted):
            assert report.rows
            for row, entry in zip(report.rows, report.to_dict()["layers"], strict=True):
                assert (entry["stride"], entry["dilation"], entry["groups"]) == (None,) * 3
                assert entry["kernel"] == [3, 3]
                assert row_cells(row)[4:7] == ("?", "?", "?")

    def test_takes_only_splits(self, tmp_path: Path) -> None:
        model: Any = open_model(
            saved(tmp_path / "a.pt", c__weight=(8, 3, 3, 3), d__weight=(8, 1, 3, 3))
        )
        chain = (model.conv("c"),)
        assert "merged" in model.rewrite_refusal(Rewrite("c", "c:in", (chain,), drop=("c", "d")))
        assert "branches" in model.rewrite_refusal(Rewrite("c", "c:in", (chain, chain)))
        assert "depthwise" in model.rewrite_refusal(Rewrite("d", "d:in", (chain,)))
        assert model.rewrite_refusal(Rewrite("x", "x:in", (chain,)))
        with pytest.raises(UnsupportedError, match="depthwise"):
            model.rewrite([Rewrite("d", "d:in", (chain,))])

    def test_rewritten_graph_counts_the_new_weights(self, tmp_path: Path) -> None:
        model = open_model(saved(tmp_path / "a.pt", c__weight=(8, 3, 3, 3), c__bias=(8,)))
        after = split_all(model)
        assert [n.name for n in after.graph().nodes] == ["c.0", "c.1"]
        assert sum(n.params for n in after.graph().nodes) == 3 * 8 * 9 + 8 * 3 * 8 + 8
        assert after.conv("c.1").weight.shape == (8, 24, 1, 1)
        assert len(model.graph().nodes) == 1


class TestSave:
    def test_bare(self, tmp_path: Path) -> None:
        original = torch.nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
        torch.save(original.state_dict(), tmp_path / "a.pt")
        model = split_all(open_model(tmp_path / "a.pt"))
        out = tmp_path / "a.dac.pt"
        assert model.side_files(out) == (tmp_path / "a.dac.plan.json",)
        written = model.save(out, provenance={"version": "1"}, plan=PLAN)
        assert written == (out, tmp_path / "a.dac.plan.json")
        content = torch.load(out, weights_only=True)
        assert type(content) is OrderedDict
        assert list(content) == [
            "0.0.weight", "0.1.weight", "0.1.bias", "1.weight", "1.bias", "1.running_mean",
            "1.running_var", "1.num_batches_tracked", "2.0.weight", "2.1.weight", "2.1.bias",
        ]  # fmt: skip
        assert content._metadata["0.1"] == {"version": 1}
        assert content._metadata["1"] == {"version": 2}
        record = json.loads(written[1].read_text("utf-8"))
        assert record["plan"]["layers"][0]["rank"] == 9
        assert record["provenance"] == {"version": "1"}

    def test_nested_keeps_the_rest_and_holds_the_plan(self, tmp_path: Path) -> None:
        state = {"module.c.weight": torch.randn(8, 3, 3, 3), "module.c.bias": torch.zeros(8)}
        content = {"epoch": 3, "state_dict": state, "best_prec1": torch.tensor(0.5)}
        torch.save(content, tmp_path / "a.th")
        model = split_all(open_model(tmp_path / "a.th"))
        assert [n.name for n in model.graph().nodes] == ["c.0", "c.1"]
        assert model.side_files(tmp_path / "b.th") == ()
        assert model.save(tmp_path / "b.th", provenance={}, plan=PLAN) == (tmp_path / "b.th",)
        after = torch.load(tmp_path / "b.th", weights_only=True)
        assert list(after) == ["epoch", "state_dict", "best_prec1", "dacconv"]
        assert list(after["state_dict"]) == [
            "module.c.0.weight",
            "module.c.1.weight",
            "module.c.1.bias",
        ]
        assert type(after["state_dict"]) is dict
        assert after["dacconv"]["entry"] == "state_dict"

    def test_safetensors(self, tmp_path: Path) -> None:
        tensors = {"c.weight": torch.randn(8, 3, 3, 3).half(), "z": torch.ones(3)}
        save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
        model = split_all(open_model(tmp_path / "a.safetensors"))
        out = tmp_path / "b.safetensors"
        assert model.save(out, provenance={}, plan=PLAN) == (out,)
        after = load_file(out)
        assert {k: v.dtype for k, v in after.items()} == {
            "c.0.weight": torch.float16, "c.1.weight": torch.float16, "z": torch.float32,
        }  # fmt: skip
        with safe_open(out, "pt") as opened:
            metadata = opened.metadata()
        assert metadata["format"] == "pt"
        assert json.loads(metadata["dacconv"])["plan"]["layers"]

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_dtype(self, tmp_path: Path, dtype: torch.dtype) -> None:
        torch.save({"c.weight": torch.randn(8, 3, 3, 3).to(dtype)}, tmp_path / "a.pt")
        split_all(open_model(tmp_path / "a.pt")).save(tmp_path / "b.pt", provenance={}, plan=PLAN)
        after = torch.load(tmp_path / "b.pt", weights_only=True)
        assert {v.dtype for v in after.values()} == {dtype}

    def test_tied_weights_stay_tied(self, tmp_path: Path) -> None:
        weight = torch.randn(3, 3, 3, 3)
        torch.save({"a.weight": weight, "b.weight": weight}, tmp_path / "a.pt")
        model = open_model(tmp_path / "a.pt", LoadOptions(vouched=("b",)))  # as many in as out
        nodes = model.graph().nodes
        assert nodes[0].weight == nodes[1].weight
        split_all(model).save(tmp_path / "b.pt", provenance={}, plan=PLAN)
        after = torch.load(tmp_path / "b.pt", weights_only=True)
        assert after["a.0.weight"].data_ptr() == after["b.0.weight"].data_ptr()

    def test_same_bytes_again(self, tmp_path: Path) -> None:
        saved(tmp_path / "a.pt", c__weight=(8, 3, 3, 3))
        for name in ("b.pt", "c.pt"):
            model = split_all(open_model(tmp_path / "a.pt"))
            model.save(tmp_path / name, provenance={"b": 1, "a": 2}, plan=PLAN)
        assert (tmp_path / "b.pt").read_bytes() == (tmp_path / "c.pt").read_bytes()
        assert (tmp_path / "b.plan.json").read_bytes() == (tmp_path / "c.plan.json").read_bytes()

    def test_converted_again(self, tmp_path: Path) -> None:
        saved(tmp_path / "a.pt", c__weight=(8, 3, 3, 3), d__weight=(8, 8, 3, 3))
        model = open_model(tmp_path / "a.pt")
        conv = model.conv("c")
        half = Conv(conv.weight, None, (1, 1), ((0, 0), (0, 0)), (1, 1))
        point = Conv(np.ones((8, 8, 1, 1), np.float32), None, (1, 1), ((0, 0), (0, 0)), (1, 1))
        first = model.rewrite([Rewrite("c", "c:in", ((half, point),))])
        first.save(tmp_path / "b.pt", provenance={}, plan=PLAN)
        again = open_model(tmp_path / "b.pt", LoadOptions(vouched=("d",)))  # as many in as out
        assert [n.name for n in again.graph().nodes] == ["c.0", "c.1", "d"]
        split_all(again).save(tmp_path / "c.pt", provenance={}, plan=PLAN)
        assert "d.1.weight" in torch.load(tmp_path / "c.pt", weights_only=True)


class TestEntries:
    def both(self, path: Path) -> Path:
        state = {"c.weight": torch.randn(8, 3, 3, 3)}
        torch.save({"params": state, "params_ema": {k: v + 1 for k, v in state.items()}}, path)
        return path

    def test_several_need_a_key(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="params, params_ema") as caught:
            open_model(self.both(tmp_path / "a.pt"))
        assert "--key" in str(caught.value)

    def test_key(self, tmp_path: Path) -> None:
        path = self.both(tmp_path / "a.pt")
        model = split_all(open_model(path, LoadOptions(key="params_ema")))
        assert any("params" in note for note in model.graph().notes)
        model.save(tmp_path / "b.pt", provenance={}, plan=PLAN)
        after = torch.load(tmp_path / "b.pt", weights_only=True)
        assert list(after["params"]) == ["c.weight"]
        assert list(after["params_ema"]) == ["c.0.weight", "c.1.weight"]

    def test_wrong_key(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="nothing") as caught:
            open_model(self.both(tmp_path / "a.pt"), LoadOptions(key="nothing"))
        assert "params_ema" in str(caught.value)

    def test_key_with_dots(self, tmp_path: Path) -> None:
        torch.save({"nets": {"g": {"c.weight": torch.randn(8, 3, 3, 3)}}}, tmp_path / "a.pt")
        for options in (LoadOptions(), LoadOptions(key="nets.g")):
            assert len(open_model(tmp_path / "a.pt", options).graph().nodes) == 1

    def test_optimizer_is_told(self, tmp_path: Path) -> None:
        net = nn.Sequential(nn.Conv2d(3, 8, 3))
        optimizer = torch.optim.Adam(net.parameters())
        net(torch.zeros(1, 3, 4, 4)).sum().backward()
        optimizer.step()
        torch.save(
            {"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt"
        )
        model = open_model(tmp_path / "a.pt")
        assert [n.name for n in model.graph().nodes] == ["0"]
        assert any("optimizer" in note for note in model.graph().notes)

    @pytest.mark.parametrize("content", [{"a": 1}, [1, 2], torch.ones(3), {}, {"x": torch.ones(2)}])
    def test_nothing_inside(self, tmp_path: Path, content: object) -> None:
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(FormatError, match="no weights"):
            open_model(tmp_path / "a.pt")


@pytest.mark.parametrize(("net", "count"), [(ResNet20, 19), (VGG16Probe, 13), (DnCNN, 17)])
def test_parameters_are_all_counted(tmp_path: Path, net: type[nn.Module], count: int) -> None:
    made = net()
    torch.save(made.state_dict(), tmp_path / "a.pt")
    graph = open_model(tmp_path / "a.pt").graph()
    assert sum(n.params for n in graph.nodes) == sum(math.prod(p.shape) for p in made.parameters())
    assert len(eligible(graph)) == count
