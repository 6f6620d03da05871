from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import uncalled_nets
from torch import nn

from dacconv.jobs.convert import convert_file, inspect_file
from dacconv.settings import Settings

UNCALLED = ("up3.0", "narrow", "up", "flat", "line")


def settings(make: Callable[[], nn.Module], **more: object) -> Settings:
    arch = f"{uncalled_nets.__file__}:{make.__name__}"
    return Settings.of(arch=arch, input_shape=("1,3,16,16",), samples=1, **more)


def stored(make: Callable[[], nn.Module], folder: Path) -> Path:
    torch.save(make().state_dict(), folder / "a.pt")
    return folder / "a.pt"


def test_layers_that_are_not_called_cost_nothing_and_hide_no_total(tmp_path: Path) -> None:
    report = inspect_file(stored(uncalled_nets.scaled, tmp_path), settings(uncalled_nets.scaled))
    rows = {row.name: row for row in report.rows}
    for name in UNCALLED:
        assert (rows[name].before.macs, rows[name].before.traffic) == (0, 0)
        assert rows[name].before.params > 0
        assert rows[name].reason == "not reached by the forward pass"
    called = 16 * 16 * (3 * 16 + 16 * 16 + 16 * 64) * 9
    assert report.before.macs == called
    assert report.before.traffic
    assert report.roof_before.intensity


@pytest.mark.parametrize("choice", [{"rank": 2}, {"macs": 0.6, "calibrate": "none"},
                                    {"params": 0.9, "calibrate": "none"}])  # fmt: skip
def test_what_is_not_called_stays_as_it_is(tmp_path: Path, choice: dict[str, object]) -> None:
    path = stored(uncalled_nets.scaled, tmp_path)
    report = convert_file(
        path, settings(uncalled_nets.scaled, **choice), output=tmp_path / "b.pt"
    ).report
    assert report.verification is not None
    before, after = torch.load(path), torch.load(tmp_path / "b.pt")
    for name in UNCALLED:
        assert torch.equal(before[f"{name}.weight"], after[f"{name}.weight"])


def test_a_conv_that_is_called_as_a_function(tmp_path: Path) -> None:
    path = stored(uncalled_nets.functional, tmp_path)
    report = convert_file(
        path, settings(uncalled_nets.functional, rank=8), output=tmp_path / "b.pt"
    ).report
    assert report.verification is not None
    assert (tmp_path / "b.pt").exists()
