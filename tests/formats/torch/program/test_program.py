from __future__ import annotations

import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim
from torch_nets import ResNet20, eligible, randomized, relative, small_net, split, split_all

from dacconv.errors import DacconvError, FormatError, UnsupportedError, UsageError
from dacconv.formats import LoadOptions, open_model, read_record
from dacconv.formats.torch.program.expressions import safe_expression
from dacconv.fusions import find_fusions
from dacconv.graph.plan_json import plan_to_dict
from dacconv.graph.types import Choice, Plan, Rewrite
from tests.conftest import ROOT

ORIGIN = {"version": "1", "sha256": "ab", "source": "a.pt2", "options": {}}
PLAN = Plan((Choice("stem", "dac", (25,)),))
SHAPE = (2, 3, 24, 24)


def export(
    path: Path,
    net: nn.Module,
    *shapes: tuple[int, ...],
    dynamic: Any = None,
    decompose: bool = False,
) -> Any:
    args = tuple(torch.zeros(shape) for shape in shapes or (SHAPE,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of padding="same" and of deprecated parts
        program = torch.export.export(net.eval(), args, dynamic_shapes=dynamic)
        if decompose:
            program = program.run_decompositions()
        torch.export.save(program, path)
    return open_model(path)


def feeds(model: Any, *shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    pairs = zip(model.inputs(), shapes or (SHAPE,), strict=True)
    return {s.name: rng.standard_normal(shape).astype(s.dtype) for s, shape in pairs}


def agree(model: Any, other: Any, given: dict[str, np.ndarray]) -> float:
    a, b = model.runner()(given), other.runner()(given)
    assert list(a) == list(b)
    return max(relative(a[name], b[name]) for name in a)


def reloaded(path: Path, x: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.export.load(path).module()(x)


class Sizes(nn.Module):
    """Convs beside arithmetic on the sizes of its input."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = x.shape
        if self.kind == "Padded":
            x = F.pad(x, (0, (4 - width % 4) % 4, 0, (4 - height % 4) % 4))
        y = self.first(x)
        if self.kind == "Joined":
            return torch.cat([y.flatten(2), self.second(y).flatten(2)], 2)
        if self.kind == "Cropped":
            return self.second(y)[:, :, : height // 2, width - 9 :] * width / 2
        if self.kind == "Resized":
            return F.interpolate(self.second(y), size=(2 * height, 3 * width), mode="bilinear")
        if self.kind == "Shuffled":
            y = y.view(batch, 2, 4, height, width).transpose(1, 2).reshape(batch, 8, height, width)
        return self.second(y)


class TestSplit:
    @pytest.mark.parametrize("dynamic", [None, ({0: Dim.AUTO},)], ids=["fixed", "free batch"])
    @pytest.mark.parametrize("decompose", [False, True], ids=["training", "core aten"])
    def test_exact_at_full_rank_saved_and_loaded(
        self, tmp_path: Path, dynamic: Any, decompose: bool
    ) -> None:
        net = small_net()
        model = export(tmp_path / "a.pt2", net, dynamic=dynamic, decompose=decompose)
        assert eligible(model.graph()) == ["stem", "same", "reflect", "wide", "holes"]
        after = split_all(model)
        assert agree(model, after, feeds(model)) < 1e-5
        out = tmp_path / "b.pt2"
        assert after.save(out, provenance={"version": "1"}, plan=PLAN) == (out,)
        x = torch.randn(5 if dynamic else 2, *SHAPE[1:])
        with torch.no_grad():
            assert relative(net(x), reloaded(out, x)) < 1e-5
        again = open_model(out)
        assert again.inputs()[0].shape == ((None if dynamic else 2), *SHAPE[1:])
        assert "stem.weight" not in again.program.state_dict
        assert {"stem.0.weight", "stem.1.weight", "stem.1.bias"} <= set(again.program.state_dict)
        assert [n.name for n in again.graph().nodes][:2] == ["stem.0", "stem.1"]
        again.save(tmp_path / "c.pt2", provenance={}, plan=PLAN)  # and once more
        assert relative(reloaded(out, x), reloaded(tmp_path / "c.pt2", x)) == 0

    def test_free_image_size(self, tmp_path: Path) -> None:
        net = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 5))
        sizes = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
        model = export(tmp_path / "a.pt2", net, dynamic=(sizes,))
        assert "--input-shape" in str(model.runnable)
        geometry = model.graph().node("0").geometry
        assert geometry.output_size is None
        sized = open_model(tmp_path / "a.pt2", LoadOptions(input_shapes={"": (1, 3, 30, 40)}))
        assert sized.runnable is None
        assert sized.graph().node("0").geometry.output_size == (15, 20)
        assert sized.graph().node("2").shape == (1, 4, 11, 16)
        after = split_all(sized)
        assert agree(sized, after, feeds(sized, (1, 3, 30, 40))) < 1e-5
        after.save(tmp_path / "b.pt2", provenance={}, plan=PLAN)
        assert reloaded(tmp_path / "b.pt2", torch.zeros(3, 3, 21, 33)).shape == (3, 4, 7, 13)

    @pytest.mark.parametrize("decompose", [False, True], ids=["training", "core aten"])
    @pytest.mark.parametrize("kind", ["Padded", "Joined", "Cropped", "Resized", "Shuffled"])
    def test_arithmetic_on_sizes(self, tmp_path: Path, kind: str, decompose: bool) -> None:
        """Sums and products of sizes are calls beside those of tensors."""
        net = Sizes(kind)
        dynamic = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
        export(tmp_path / "a.pt2", net, (2, 3, 24, 22), dynamic=dynamic, decompose=decompose)
        model = open_model(tmp_path / "a.pt2", LoadOptions(input_shapes={"": (3, 3, 30, 26)}))
        assert eligible(model.graph()) == ["first", "second"]
        after = split_all(model)
        assert agree(model, after, feeds(model, (3, 3, 30, 26))) < 1e-5
        after.save(tmp_path / "b.pt2", provenance={}, plan=PLAN)
        x = torch.randn(4, 3, 32, 28)
        with torch.no_grad():
            assert relative(net(x), reloaded(tmp_path / "b.pt2", x)) < 1e-5

    def test_batch_marked_as_dynamic(self, tmp_path: Path) -> None:
        """torch.export puts attributes on the sample inputs, and pickles them too."""
        model = export(tmp_path / "a.pt2", small_net(), dynamic=({0: Dim.DYNAMIC},))
        assert model.graph().nodes

    def test_batch_in_eights(self, tmp_path: Path) -> None:
        net = nn.Conv2d(3, 4, 3)
        model = export(tmp_path / "a.pt2", net, (8, 3, 9, 9), dynamic=({0: Dim("b", min=4)},))
        assert model.inputs()[0].shape == (4, 3, 9, 9)
        assert model.runner()(feeds(model, (4, 3, 9, 9)))["output"].shape == (4, 4, 7, 7)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_dtype_stays(self, tmp_path: Path, dtype: torch.dtype) -> None:
        net = nn.Sequential(nn.Conv2d(3, 6, 3)).to(dtype).eval()
        program = torch.export.export(net, (torch.zeros(1, 3, 8, 8, dtype=dtype),))
        torch.export.save(program, tmp_path / "a.pt2")
        model = open_model(tmp_path / "a.pt2")
        assert (
            model.graph().node("0").geometry.itemsize == torch.zeros(1, dtype=dtype).element_size()
        )
        split_all(model).save(tmp_path / "b.pt2", provenance={}, plan=PLAN)
        after = open_model(tmp_path / "b.pt2")
        assert {t.dtype for t in after.program.state_dict.values()} == {dtype}
        tolerance = {torch.float64: 1e-12, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
        assert agree(model, after, feeds(model, (1, 3, 8, 8))) < tolerance

    def test_conv_1d_and_3d_are_read(self, tmp_path: Path) -> None:
        model = export(tmp_path / "a.pt2", nn.Sequential(nn.Conv1d(3, 4, 5, padding=2)), (1, 3, 9))
        conv = model.conv("0")
        assert conv.kernel == (5,)
        assert conv.padding == ((2, 2),)
        model = export(tmp_path / "b.pt2", nn.Sequential(nn.Conv3d(3, 4, 3)), (1, 3, 5, 5, 5))
        assert model.graph().node("0").geometry.output_size == (3, 3, 3)

    def test_same_bytes_again_in_another_process(self, tmp_path: Path) -> None:
        export(tmp_path / "a.pt2", small_net(), dynamic=({0: Dim.AUTO},))
        code = (
            "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path;"
            "from torch_nets import split_all; from dacconv.formats import open_model;"
            "from dacconv.graph.types import Plan;"
            "model = split_all(open_model(sys.argv[2]));"
            "model.save(Path(sys.argv[3]), provenance={}, plan=Plan(()))"
        )
        for name, seed in (("b.pt2", "1"), ("other.pt2", "2")):
            subprocess.run(
                [sys.executable, "-c", code, str(ROOT / "tests"), tmp_path / "a.pt2",
                 tmp_path / name],
                check=True, env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin"},
            )  # fmt: skip
        assert (tmp_path / "b.pt2").read_bytes() == (tmp_path / "other.pt2").read_bytes()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.twin = nn.Conv2d(3, 3, 3, padding=1, stride=2)
        self.twin.weight = self.conv.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.twin(F.relu(self.conv(F.relu(self.conv(x)))))


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Conv2d(3, 3, 3, padding=1)
        self.made = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3, padding=1))
        self.plain = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.plain(self.made(self.read(x) * self.read.weight.mean()))


class TestWeights:
    def test_shared_by_calls_and_modules(self, tmp_path: Path) -> None:
        model = export(tmp_path / "a.pt2", Twice())
        nodes = [n for n in model.graph().nodes if n.op == "conv"]
        assert [n.name for n in nodes] == ["conv", "conv@2", "twin"]
        assert len({n.weight for n in nodes}) == 1
        after = split_all(model)
        assert agree(model, after, feeds(model)) < 1e-5
        after.save(tmp_path / "b.pt2", provenance={}, plan=PLAN)
        kernels = [
            n for n, t in open_model(tmp_path / "b.pt2").program.state_dict.items() if t.ndim == 4
        ]
        assert len(kernels) == 2

    def test_one_site_alone_keeps_the_weight_for_the_others(self, tmp_path: Path) -> None:
        model = export(tmp_path / "a.pt2", Twice())
        node = model.graph().node("conv@2")
        after = model.rewrite([Rewrite("conv@2", node.inputs[0], split(model.conv("conv@2")))])
        assert agree(model, after, feeds(model)) < 1e-5
        assert "conv.weight" in after.program.state_dict

    def test_read_or_computed_weights_are_left_alone(self, tmp_path: Path) -> None:
        model = export(tmp_path / "a.pt2", Reader())
        skips = {n.name: n.skip for n in model.graph().nodes if n.op == "conv"}
        assert "also read by mean" in skips["read"]
        assert "computed" in skips["made"]
        assert skips["plain"] is None
        with pytest.raises(UnsupportedError, match="also read"):
            model.rewrite([Rewrite("read", "x", split(model.conv("read")))])

    def test_training_batch_norm(self, tmp_path: Path) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        program = torch.export.export(net.train(), (torch.zeros(SHAPE),))
        torch.export.save(program, tmp_path / "a.pt2")
        model = open_model(tmp_path / "a.pt2")
        norm = next(n for n in model.graph().nodes if n.op == "affine")
        assert "training mode" in str(norm.skip)
        assert not find_fusions(model).rewrites
        assert agree(model, split_all(model), feeds(model)) < 1e-4


class TestSums:
    def test_sum_of_branches(self, tmp_path: Path) -> None:
        model = export(tmp_path / "a.pt2", small_net(), dynamic=({0: Dim.AUTO},))
        conv = model.conv("wide")
        parts = tuple((replace(conv, weight=conv.weight * share),) for share in (0.25, 0.5, 0.25))
        after = model.rewrite([Rewrite("wide", model.graph().node("wide").inputs[0], parts)])
        assert agree(model, after, feeds(model)) < 1e-5
        after.save(tmp_path / "b.pt2", provenance={}, plan=PLAN)
        assert {"wide.b0.weight", "wide.b2.weight"} <= set(
            open_model(tmp_path / "b.pt2").program.state_dict
        )

    def test_lopsided_and_reflected_padding(self, tmp_path: Path) -> None:
        model = export(tmp_path / "a.pt2", nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)))
        conv = model.conv("0")
        wide = np.pad(conv.weight, ((0, 0), (0, 0), (1, 0), (0, 2)))
        same = replace(conv, weight=wide, padding=((2, 1), (1, 3)))
        assert agree(model, model.rewrite([Rewrite("0", "input", ((same,),))]), feeds(model)) < 1e-6
        reflected = replace(conv, pad_mode="reflect")
        after = model.rewrite([Rewrite("0", "input", ((reflected,),))])
        x = feeds(model)["input"]
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
        expected = F.conv2d(torch.from_numpy(padded), torch.from_numpy(conv.weight),
                            torch.from_numpy(conv.bias))  # fmt: skip
        assert relative(expected, after.runner()({"input": x})["output"]) < 1e-6


class Arithmetic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.gain = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.register_buffer("mean", torch.randn(1, 4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return -(2 - ((y - self.mean) / self.gain + 0.5) * 3)


class TestFusions:
    @pytest.mark.parametrize("decompose", [False, True])
    def test_batch_norm(self, tmp_path: Path, decompose: bool) -> None:
        net = randomized(ResNet20())
        model = export(
            tmp_path / "a.pt2", net, (2, 3, 32, 32), dynamic=({0: Dim.AUTO},), decompose=decompose
        )
        after = model.rewrite(find_fusions(model).rewrites)
        assert not [n for n in after.graph().nodes if n.op == "affine"]
        given = feeds(model, (2, 3, 32, 32))
        assert agree(model, after, given) < 1e-5
        assert agree(model, split_all(after), given) < 1e-5
        after.save(tmp_path / "b.pt2", provenance={}, plan=PLAN)
        left = open_model(tmp_path / "b.pt2").program.state_dict
        assert not [name for name in left if "bn" in name and "tracked" not in name]
        x = torch.from_numpy(given["x"])
        with torch.no_grad():
            assert relative(net(x), reloaded(tmp_path / "b.pt2", x)) < 1e-5

    def test_arithmetic_with_constants(self, tmp_path: Path) -> None:
        model = export(tmp_path / "a.pt2", Arithmetic())
        after = model.rewrite(find_fusions(model).rewrites)
        assert [n.op for n in after.graph().nodes] == ["conv"]
        assert agree(model, after, feeds(model)) < 1e-5

    def test_linear_and_transposed(self, tmp_path: Path) -> None:
        net = nn.Sequential(
            nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), nn.BatchNorm2d(4),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), nn.BatchNorm1d(5),
        )  # fmt: skip
        model = export(tmp_path / "a.pt2", randomized(net))
        after = model.rewrite(find_fusions(model).rewrites)
        assert not [n for n in after.graph().nodes if n.op == "affine"]
        assert agree(model, after, feeds(model)) < 1e-5


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, Any]:
        y = self.conv(x) * scale
        return {"y": y, "parts": [y.mean(), y.sum() + x.shape[2]]}


class TestRun:
    def test_several_inputs_and_outputs(self, tmp_path: Path) -> None:
        net = Named().eval()
        x, scale = torch.randn(SHAPE), torch.tensor(2.0)
        torch.export.save(torch.export.export(net, (x,), {"scale": scale}), tmp_path / "a.pt2")
        model = open_model(tmp_path / "a.pt2")
        assert [s.name for s in model.inputs()] == ["x", "scale"]
        out = model.runner(threads=1)({"x": x.numpy(), "scale": scale.numpy()})
        assert list(out) == ["y", "parts", "parts_1"]
        with torch.no_grad():
            assert relative(net(x, scale=scale)["y"], out["y"]) < 1e-6

    def test_unknown_input(self, tmp_path: Path) -> None:
        export(tmp_path / "a.pt2", small_net())
        with pytest.raises(UsageError, match="no input 'y'"):
            open_model(tmp_path / "a.pt2", LoadOptions(input_shapes={"y": SHAPE})).inputs()

    def test_shape_that_was_fixed(self, tmp_path: Path) -> None:
        export(tmp_path / "a.pt2", small_net())
        with pytest.raises(UsageError, match="2x3x24x24, not 1x3x8x8"):
            open_model(tmp_path / "a.pt2", LoadOptions(input_shapes={"": (1, 3, 8, 8)})).inputs()

    def test_arch_has_no_place(self, tmp_path: Path) -> None:
        export(tmp_path / "a.pt2", small_net())
        with pytest.raises(UsageError, match="--arch"):
            open_model(tmp_path / "a.pt2", LoadOptions(arch="a:b"))

    def test_extra_files_are_kept(self, tmp_path: Path) -> None:
        program = torch.export.export(nn.Conv2d(3, 4, 3).eval(), (torch.zeros(SHAPE),))
        torch.export.save(program, tmp_path / "a.pt2", extra_files={"labels.txt": "cat\ndög"})
        open_model(tmp_path / "a.pt2").save(tmp_path / "b.pt2", provenance=ORIGIN, plan=PLAN)
        extras = {"labels.txt": "", "dacconv.json": ""}
        torch.export.load(tmp_path / "b.pt2", extra_files=extras)
        assert extras["labels.txt"] == "cat\ndög"
        assert json.loads(extras["dacconv.json"])["provenance"] == ORIGIN
        assert read_record(tmp_path / "a.pt2") is None
        record = read_record(tmp_path / "b.pt2")
        assert record is not None
        assert (record.provenance, record.plan) == (ORIGIN, plan_to_dict(PLAN))


def edited(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """A copy of an archive with its records changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def in_json(old: str, new: str) -> Callable[[str, bytes], bytes]:
    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return data
        assert old.encode() in data
        return data.replace(old.encode(), new.encode())

    return change


class TestSafety:
    @pytest.mark.parametrize(
        ("old", "new", "why"),
        [
            ("Symbol('s77', positive=True, integer=True)", "exec('x')", "expression"),
            ('"torch.ops.aten.relu.default"', '"torch.hub.load"', "torch.hub.load"),
            ('"name": "x"', '"name": "x=print(1)"', "the name"),
            ('"forward_arg_names": ["x"]', '"forward_arg_names": ["x=print(1)"]', "the name"),
        ],
    )
    def test_crafted_programs(self, tmp_path: Path, old: str, new: str, why: str) -> None:
        export(tmp_path / "a.pt2", small_net(), dynamic=({0: Dim.AUTO},))
        path = edited(tmp_path / "a.pt2", tmp_path / "b.pt2", in_json(old, new))
        with pytest.raises(FormatError, match=why) as caught:
            open_model(path)
        assert "--trust-pickle" in str(caught.value)

    def test_pickle_in_the_sample_inputs(self, tmp_path: Path) -> None:
        mark = tmp_path / "ran"

        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (mark,)

        torch.save(Bomb(), tmp_path / "bomb.pt")
        bomb = (tmp_path / "bomb.pt").read_bytes()
        export(tmp_path / "a.pt2", small_net())
        path = edited(
            tmp_path / "a.pt2",
            tmp_path / "b.pt2",
            lambda name, data: bomb if "sample_inputs" in name else data,
        )
        with pytest.raises(FormatError, match="Path"):
            open_model(path)
        assert not mark.exists()

    def test_compiled_code(self, tmp_path: Path) -> None:
        export(tmp_path / "a.pt2", small_net())
        with zipfile.ZipFile(tmp_path / "a.pt2", "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            archive.writestr(f"{root}/data/aotinductor/model/a.so", b"\x7fELF")
        with pytest.raises(FormatError, match="compiled code"):
            open_model(tmp_path / "a.pt2")

    @pytest.mark.parametrize(
        ("text", "safe"),
        [
            ("Symbol('s0', positive=True, integer=True)", True),
            (
                "Add(FloorDiv(Add(Symbol('s0', integer=True), Integer(-3)), Integer(2)), 1)",
                True,
            ),
            ("2*s0 + Max(1, s1)", True),
            ("open('x')", False),
            ("s0.__class__", False),
            ("[c for c in ()]", False),
            ("Symbol('a b')", False),
            ("eval(s0)", False),
            ("(", False),
        ],
    )
    def test_expressions(self, text: str, safe: bool) -> None:
        assert safe_expression(text) is safe

    def test_truncated(self, tmp_path: Path) -> None:
        export(tmp_path / "a.pt2", small_net())
        data = (tmp_path / "a.pt2").read_bytes()
        for length in range(0, len(data), len(data) // 25):
            (tmp_path / "b.pt2").write_bytes(data[:length])
            with pytest.raises(FormatError):
                open_model(tmp_path / "b.pt2")

    def test_bits_flipped(self, tmp_path: Path) -> None:
        export(tmp_path / "a.pt2", small_net())
        data = (tmp_path / "a.pt2").read_bytes()
        rng = np.random.default_rng(0)
        for _ in range(40):
            flipped = bytearray(data)
            flipped[rng.integers(len(data))] ^= 1 << rng.integers(8)
            (tmp_path / "b.pt2").write_bytes(flipped)
            try:
                open_model(tmp_path / "b.pt2").graph()
            except DacconvError as error:
                assert "b.pt2" in str(error)  # noqa: PT017

    def test_records_that_are_gone(self, tmp_path: Path) -> None:
        export(tmp_path / "a.pt2", small_net())
        with zipfile.ZipFile(tmp_path / "a.pt2") as archive:
            names = archive.namelist()
        for gone in names:
            if not gone.endswith(("version", "byteorder", "serialization_id")):
                with (
                    zipfile.ZipFile(tmp_path / "a.pt2") as old,
                    zipfile.ZipFile(tmp_path / "b.pt2", "w") as new,
                ):
                    for name in names:
                        if name != gone:
                            new.writestr(name, old.read(name))
                with pytest.raises(FormatError):
                    open_model(tmp_path / "b.pt2")
