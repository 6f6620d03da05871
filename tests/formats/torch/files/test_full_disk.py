"""Saving when the disk is full, in processes of their own: torch is known to end the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch_nets import DnCNN

from tests.conftest import ROOT

resource = pytest.importorskip("resource", reason="file size limits are a Unix thing")

CODE = """
import resource, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from torch_nets import split_all
from tests.conftest import ROOT
from dacconv.support.files import WriteError
from dacconv.formats import LoadOptions, open_model
from dacconv.graph.types import Plan
options = LoadOptions(trust_pickle=True, input_shapes={"": (1, 1, 8, 8)})
if sys.argv[2].endswith(("state.pt", "safetensors")):
    options = LoadOptions()
made = split_all(open_model(sys.argv[2], options))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
try:
    made.save(Path(sys.argv[3]), provenance={}, plan=Plan(()))
except WriteError as error:
    print(error)
    sys.exit(7)
"""


def make(folder: Path, name: str) -> Path:
    net, path = DnCNN(3, 16).eval(), folder / name
    if name == "net.pt2":
        torch.export.save(torch.export.export(net, (torch.zeros(1, 1, 8, 8),)), path)
    elif name == "state.pt":
        torch.save(net.state_dict(), path)
    elif name == "state.safetensors":
        save_file(net.state_dict(), path)
    else:
        torch.save({"model": net}, path)
    return path


@pytest.mark.parametrize("name", ["net.pt2", "state.pt", "state.safetensors", "module.pth"])
@pytest.mark.parametrize("limit", [0, 9000])
def test_one_message_and_nothing_left(tmp_path: Path, name: str, limit: int) -> None:
    source = make(tmp_path, name)
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / name
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(ROOT / "tests"), source, target, str(limit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert "cannot write" in done.stdout
    assert list((tmp_path / "out").iterdir()) == []
