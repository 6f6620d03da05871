"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real checkpoints, which the project does not carry."""
    folder = Path(os.environ.get("DACCONV_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real checkpoints are not at {folder}; set DACCONV_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def assets() -> Path:
    """The small real network and images that the repository carries."""
    return ROOT / "tests" / "assets"
