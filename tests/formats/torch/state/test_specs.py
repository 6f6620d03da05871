from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import record_nets
import torch
from record_nets import NETS
from safetensors.torch import save_file
from torch import nn
from torch_nets import relative

import dacconv
from dacconv.errors import FormatError, UnsupportedError, UsageError
from dacconv.formats.torch.state.specs import folded
from dacconv.jobs.convert import convert_file, fuse_file, inspect_file
from dacconv.settings import Settings

Make = Callable[[], nn.Module]
SHAPE = (2, 6, 12, 14)


def settings(make: Make, **more: object) -> Settings:
    sizes = "1," + ",".join(map(str, SHAPE[1:]))
    return Settings.of(
        arch=f"{record_nets.__file__}:{make.__name__}", input_shape=(sizes,), samples=1, **more
    )


def stored(make: Make, path: Path) -> Path:
    """The state dict of the network, in the container that the suffix names."""
    state = make().state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif path.suffix == ".ckpt":
        torch.save({"epoch": 3, "state_dict": {f"model.{k}": v for k, v in state.items()}}, path)
    else:
        torch.save(state, path)
    return path


STEPS = {
    "first": {"first_k": 1, "form": "sum", "fuse": False},
    "last": {"last_k": 1, "form": "concat"},
    "split": {"form": "multiplier", "fuse": False},
    "both": {"form": "repeat"},
}


def run(make: Make, path: Path, steps: Sequence[str]) -> Path:
    """Convert a file again and again; a step that finds nothing to do is left out."""
    for number, step in enumerate(steps):
        out = path.with_name(f"{number}{path.suffix}")
        try:
            if step == "fuse":
                fuse_file(path, settings(make), output=out)
            else:
                more = settings(make, rank=99, allow_costlier=True, **STEPS[step])
                convert_file(path, more, output=out)
        except UnsupportedError as error:
            if error.what not in ("no layer of this model can be split", "nothing to merge"):
                raise
        else:
            path = out
    return path


def difference(make: Make, out: Path) -> float:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return relative(make()(x), dacconv.apply(make(), out).eval()(x))


ORDERS = [
    ("both",), ("split",), ("fuse", "split"), ("first", "last"), ("last", "first"),
    ("first", "both"), ("first", "fuse", "both"), ("fuse", "first", "both", "fuse"),
]  # fmt: skip


class TestApplied:
    @pytest.mark.parametrize("make", NETS)
    def test_merged_chains(self, tmp_path: Path, make: Make) -> None:
        suffix = (".pt", ".safetensors", ".ckpt")[NETS.index(make) % 3]
        out = run(make, stored(make, tmp_path / f"a{suffix}"), ["fuse"])
        assert difference(make, out) < 1e-5
        inspect_file(out, settings(make))

    @pytest.mark.parametrize("steps", ORDERS, ids="-".join)
    @pytest.mark.parametrize(
        "make",
        [record_nets.transposed_then_one, record_nets.three_in_a_row, record_nets.branches],
    )
    def test_converted_several_times(
        self, tmp_path: Path, make: Make, steps: Sequence[str]
    ) -> None:
        out = run(make, stored(make, tmp_path / "a.pt"), steps)
        assert difference(make, out) < 1e-5
        inspect_file(out, settings(make))

    def test_block_inside_a_converted_file(self, tmp_path: Path) -> None:
        make = record_nets.rep_vgg
        out = run(make, stored(make, tmp_path / "a.pt"), ("first", "both"))
        assert difference(make, out) < 1e-5


class TestWrapped:
    """A file of a wrapper, such as a Lightning module, that was converted as the inner network."""

    @pytest.mark.parametrize("prefix", ["model", "net.module"])
    @pytest.mark.parametrize("how", ["fuse", "both", "weights"])
    def test_fits_the_wrapper_and_the_network(self, tmp_path: Path, how: str, prefix: str) -> None:
        make = record_nets.three_in_a_row

        def wrapped() -> nn.Module:
            net = make()
            for name in reversed(prefix.split(".")):
                net = nn.ModuleDict({name: net})
            return net

        content = {"state_dict": wrapped().state_dict(), "epoch": 3}
        torch.save(content, tmp_path / "a.ckpt")
        if how == "weights":
            out = tmp_path / "b.ckpt"
            chosen = Settings.of(rank=99, allow_costlier=True, layers=(f"{prefix}.4",))
            convert_file(tmp_path / "a.ckpt", chosen, output=out)
        else:
            out = run(make, tmp_path / "a.ckpt", [how])
        keys = torch.load(out, weights_only=True)["state_dict"]
        assert all(key.startswith(f"{prefix}.") for key in keys)
        assert difference(make, out) < 1e-5
        outer = dacconv.apply(wrapped(), out)
        assert list(outer.state_dict()) == list(keys)
        x = torch.randn(SHAPE)
        with torch.no_grad():
            assert relative(make()(x), outer.get_submodule(prefix)(x)) < 1e-5


class TestMisfits:
    def merged(self, tmp_path: Path) -> Path:
        return run(record_nets.three_then_one, stored(record_nets.three_then_one,
                   tmp_path / "a.pt"), ["fuse"])  # fmt: skip

    @pytest.mark.parametrize(
        ("more", "misfit"),
        [
            ({"stride": 1}, "stride 1x1, not 2x2"),
            ({"padding": 0}, "padding 0x0, not 1x1"),
            ({"dilation": 2}, "dilation 2x2, not 1x1"),
            ({"groups": 2}, "groups 2, not 1"),
            ({"kernel_size": 1}, "kernel 1x1, not 3x3"),
            ({"out_channels": 9}, "6 -> 9 channels, not 6 -> 8"),
            ({"padding_mode": "circular"}, "padding mode circular, not zeros"),
        ],
    )
    def test_network_that_was_not_converted(
        self, tmp_path: Path, more: dict[str, int], misfit: str
    ) -> None:
        wanted = {"in_channels": 6, "out_channels": 8, "kernel_size": 3, "stride": 2, "padding": 1}
        first = nn.Conv2d(**{**wanted, **more})  # type: ignore[arg-type]
        net = nn.Sequential(first, nn.Conv2d(first.out_channels, 4, 1))
        with pytest.raises(UsageError, match=misfit):
            dacconv.apply(net, self.merged(tmp_path))
        assert net[0] is first

    def test_records_of_earlier_versions_open(self, tmp_path: Path) -> None:
        """They do not say what was replaced, and list a layer of the first time beside it."""
        make = record_nets.three_in_a_row
        out = run(make, stored(make, tmp_path / "a.pt"), ["fuse"])
        beside = out.with_suffix(".plan.json")
        record = json.loads(beside.read_text("utf-8"))
        del record["replaced"]
        beside.write_text(json.dumps(record), "utf-8")
        assert difference(make, out) < 1e-5

    @pytest.mark.parametrize("facts", [3, {"0": 3}, {"0": {"stride": "x"}}, {"0": {"kernel": {}}}])
    def test_damaged_facts(self, tmp_path: Path, facts: object) -> None:
        out = self.merged(tmp_path)
        beside = out.with_suffix(".plan.json")
        record = json.loads(beside.read_text("utf-8")) | {"replaced": facts}
        beside.write_text(json.dumps(record), "utf-8")
        if facts in (3, {"0": 3}):
            assert difference(record_nets.three_then_one, out) < 1e-5
        else:
            with pytest.raises(UsageError, match="does not fit"):
                dacconv.apply(record_nets.three_then_one(), out)

    @pytest.mark.parametrize("inner", ["0.x", "0.7", "0.0.0"])
    def test_damaged_nesting(self, tmp_path: Path, inner: str) -> None:
        out = self.merged(tmp_path)
        beside = out.with_suffix(".plan.json")
        record = json.loads(beside.read_text("utf-8"))
        record["modules"][inner] = {"type": "Identity"}
        beside.write_text(json.dumps(record), "utf-8")
        with pytest.raises(FormatError, match="plan"):
            dacconv.apply(record_nets.three_then_one(), out)


CONV = {"type": "Conv2d", "in": 1}
NEW = {"type": "Conv2d", "in": 2}


def chain(*layers: object) -> dict[str, object]:
    return {"type": "Sequential", "layers": list(layers)}


def kept(name: str, **inside: object) -> dict[str, object]:
    return {"type": "Kept", "name": name, "inside": inside}


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ({"a": CONV, "b": NEW}, {"a": CONV, "b": NEW}),
        ({"a": chain(CONV, CONV), "a.1": NEW}, {"a": chain(CONV, NEW)}),
        ({"a": chain(chain(CONV), CONV), "a.0.0": NEW}, {"a": chain(chain(NEW), CONV)}),
        ({"a": chain(CONV, kept("act")), "a.1.x": NEW}, {"a": chain(CONV, kept("act", x=NEW))}),
        (
            {"a": chain(CONV, kept("act", x=chain(CONV))), "a.1.x.0": NEW},
            {"a": chain(CONV, kept("act", x=chain(NEW)))},
        ),
        (
            {"a": chain(CONV, kept("act")), "a.1": chain(NEW, kept("y"))},
            {"a": chain(CONV, chain(NEW, kept("act.y")))},
        ),
        ({"a": chain(CONV, kept("act")), "ab": NEW}, {"a": chain(CONV, kept("act")), "ab": NEW}),
    ],
)  # fmt: skip
def test_layers_inside_replaced_ones_become_part_of_them(
    specs: dict[str, dict[str, object]], expected: object
) -> None:
    assert folded(specs) == expected
