from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import repeat_nets
import torch
from repeat_nets import MERGED, NOT_MERGED
from torch import nn
from torch_nets import relative

import dacconv
from dacconv.formats import LoadOptions, open_model
from dacconv.fusions import find_fusions
from dacconv.jobs.convert import convert_file, fuse_file
from dacconv.settings import Settings

Make = Callable[[], nn.Module]


def settings(make: Make, **more: object) -> Settings:
    arch = f"{repeat_nets.__file__}:{make.__name__}"
    return Settings.of(arch=arch, input_shape=("1,8,10,12",), samples=1, **more)


def stored(make: Make, folder: Path) -> Path:
    torch.save(make().state_dict(), folder / "a.pt")
    return folder / "a.pt"


def converted(make: Make, out: Path) -> tuple[nn.Module, float]:
    """The converted network, and by how much it differs from the original."""
    x = torch.randn((1, 8, 10, 12), generator=torch.Generator().manual_seed(0))
    net = dacconv.apply(make(), out).eval()
    with torch.no_grad():
        return net, relative(make()(x), net(x))


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@pytest.mark.parametrize(("make", "left"), MERGED.items())
def test_layers_that_are_always_called_together_are_merged(
    tmp_path: Path, make: Make, left: int
) -> None:
    outcome = fuse_file(stored(make, tmp_path), settings(make), output=tmp_path / "b.pt")
    net, error = converted(make, tmp_path / "b.pt")
    assert norms(net) == left
    assert error < 1e-5
    assert {row.name: row.sites for row in outcome.report.rows}["tail"] == 1


@pytest.mark.parametrize("make", NOT_MERGED)
def test_layers_that_are_also_called_otherwise_stay(tmp_path: Path, make: Make) -> None:
    model = open_model(stored(make, tmp_path), LoadOptions(
        arch=f"{repeat_nets.__file__}:{make.__name__}", input_shapes={"": (1, 8, 10, 12)}
    ))  # fmt: skip
    fusions = find_fusions(model)
    assert not fusions.rewrites
    assert any("called several times" in each.reason for each in fusions.refusals)


@pytest.mark.parametrize("form", ["multiplier", "sum", "repeat", "concat"])
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("make", [repeat_nets.loop, repeat_nets.own_norms])
def test_every_form_is_written(tmp_path: Path, make: Make, fuse: bool, form: str) -> None:
    options = settings(make, rank=99, allow_costlier=True, form=form, fuse=fuse)
    outcome = convert_file(stored(make, tmp_path), options, output=tmp_path / "b.pt")
    net, error = converted(make, tmp_path / "b.pt")
    assert error < 1e-5
    assert not isinstance(net.body[0], nn.Conv2d)
    sites = {row.name: row.sites for row in outcome.report.rows}
    assert sites == {"body.0": 3 if make is repeat_nets.loop else 2, "tail": 1}


def test_a_budget_gives_all_calls_of_a_merged_layer_the_same_rank(tmp_path: Path) -> None:
    options = settings(repeat_nets.loop, macs=0.6, calibrate="none")
    outcome = convert_file(stored(repeat_nets.loop, tmp_path), options, output=tmp_path / "b.pt")
    assert outcome.report.rows[0].rank is not None
    net, _ = converted(repeat_nets.loop, tmp_path / "b.pt")
    assert norms(net) == 0
