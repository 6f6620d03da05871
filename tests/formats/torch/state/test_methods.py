"""Every method and form of it, for every kind of conv: ``apply`` computes what was converted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import method_nets
import pytest
import torch
from method_nets import KINDS
from torch_nets import relative

import dacconv
from dacconv.decompositions import METHODS
from dacconv.errors import UnsupportedError, UsageError
from dacconv.jobs.convert import convert_file
from dacconv.settings import Settings

WAYS = [(name, form) for name, method in METHODS.items() for form in method.forms or (None,)]


def is_refused(method: str, form: str | None, kind: str) -> bool:
    """Whether the only layer of a network cannot be split so, or not be written in that form."""
    one_axis = kind == "one axis" and method.startswith("spatial")
    unwritable = form == "repeat" and kind == "three axes"
    return kind == "depthwise" or method == "lowrank" or one_axis or unwritable


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("method", "form"), WAYS)
def test_apply(tmp_path: Path, method: str, form: str | None, kind: str) -> None:
    net = method_nets.make(kind)
    torch.save(net.state_dict(), tmp_path / "a.pt")
    sizes = ",".join(map(str, method_nets.shape(kind)))
    options: Mapping[str, object] = {"form": form} if form else {}
    settings = Settings.of(
        method=method, rank=999, allow_costlier=True, samples=1, input_shape=(sizes,),
        arch=f"{method_nets.__file__}:make", arch_arg=(f"kind={kind}",), **options,
    )  # fmt: skip
    try:
        convert_file(tmp_path / "a.pt", settings, output=tmp_path / "b.pt")
    except (UnsupportedError, UsageError) as error:
        if not is_refused(method, form, kind):
            raise
        assert "can be split" in error.what or "cannot be written" in error.what  # noqa: PT017
        return
    assert not is_refused(method, form, kind)
    x = torch.randn(method_nets.shape(kind), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        made = dacconv.apply(method_nets.make(kind), tmp_path / "b.pt").eval()
        assert relative(net(x), made(x)) < 1e-4
