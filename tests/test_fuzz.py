"""A short run of ``scripts/fuzz.py``; ``make fuzz`` is the long one."""

from __future__ import annotations

import random
from pathlib import Path

import fuzz
import fuzz_mutants
import pytest


def test_mutants_of_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--mutants", "250", "--workers", "1", "--keep", str(tmp_path)]
    assert fuzz.main(arguments) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in fuzz.FORMATS)
    assert "0 faults" in printed
    assert not list(tmp_path.iterdir())


def test_a_mutant_can_be_made_again() -> None:
    data = fuzz_mutants.conv_net().SerializeToString()
    first, again, other = (
        fuzz_mutants.mutate("a.onnx", data, random.Random(seed)) for seed in ("1", "1", "2")
    )
    assert first == again != other


def test_canary_notices_what_a_file_may_not_do(tmp_path: Path) -> None:
    canary = fuzz.Canary(tmp_path / "inside", active=True)
    canary("os.system", ("touch a",))
    canary("open", (str(tmp_path / "outside"), "w", 1))
    canary("open", (str(tmp_path / "inside" / "a"), "w", 1))
    canary("os.rename", (str(tmp_path / "inside" / "a"), str(tmp_path / "b"), -1, -1))
    assert [event.partition(":")[0] for event in canary.events] == [
        "code was run", "a file outside was changed", "a file outside was changed",
    ]  # fmt: skip


def test_faults_are_counted_and_shown() -> None:
    outcomes = [fuzz.Outcome("pt2", 1, "ok"), fuzz.Outcome("pt2", 2, "fault", "x", 3.0, 1 << 21)]
    text = fuzz.table(outcomes)
    assert "2 mutants, 1 faults" in text
    assert "3.0 s" in text
