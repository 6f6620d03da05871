"""Files that a person edited, or a disk damaged, end in a clear message and in nothing else."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dacconv.errors import DacconvError, UsageError
from dacconv.graph.types import Choice
from dacconv.planning.plans import plan_from_json
from dacconv.reports import sweep_words
from dacconv.sweeps.files import read_sweep, to_csv, to_json
from dacconv.sweeps.pick import pick
from dacconv.sweeps.results import PointResult, Sweep
from dacconv.timing.cache import Cache

SWEEP = Sweep(
    {"sha256": "0", "dacconv": "1", "options": {"samples": 4}, "source": "a", "inputs": "x"},
    ("conv1", "conv2"),
    {"conv1": (0.75, 0.25), "conv2": (1.0,)},
    (
        PointResult("original", "original", macs=100, params=10, agreement=1.0),
        PointResult("conv1@1", "single", (Choice("conv1", "dac", (1,)),), "conv1", None, 1,
                    macs=50, params=5, kernel_error=0.5, output_error=0.25, agreement=0.75),
    ),
)  # fmt: skip
PLAN = {"plan_version": 2, "layers": [{"name": "a", "method": "dac", "rank": 1, "note": "n"}],
        "skipped": [{"name": "b", "reason": "c"}]}  # fmt: skip
TIMES = {"version": 1, "timings": {"cpu": {"case": {"whole": 1.0, "form": 0.5}}}}
VALUES: list[Any] = [
    None, True, "x", "", "\ud800", "\0", 5, -1, 0, 1.5, float("nan"), float("inf"), 1e308, 10**400,
    1 << 70, [], {}, [[]], {"a": 1}, [1, 2, 3],
]  # fmt: skip


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if place:
        yield place
    pairs = value.items() if isinstance(value, dict) else ()
    for key, item in enumerate(value) if isinstance(value, list) else pairs:
        yield from places(item, (*place, key))


def mutants(value: Any, seed: int) -> Iterator[str]:
    """Every place with another value and without its value, in random order of the values."""
    choose = random.Random(seed)
    for place in places(value):
        for other in (*choose.sample(VALUES, 6), "remove"):
            mutant = copy.deepcopy(value)
            owner = mutant
            for key in place[:-1]:
                owner = owner[key]
            if other == "remove":
                del owner[place[-1]]
            else:
                owner[place[-1]] = other
            yield json.dumps(mutant)


def refusal(call: Callable[[], object]) -> DacconvError | None:
    """The error of a call; None where it is carried out."""
    try:
        call()
    except DacconvError as error:
        return error
    return None


def use(sweep: Sweep) -> None:
    """What is read is used: a wrong value may not surface until then."""
    assert sweep_words.facts(sweep)
    sweep_words.tables(sweep)
    sweep_words.advice(sweep, "r.csv")
    assert sweep.quality.title
    for text in ("knee", "macs<=0.9", "agreement>=0.5"):
        refusal(lambda: pick(sweep, text))  # noqa: B023
    assert to_csv(sweep)
    assert to_json(sweep)


def test_mutated_results(tmp_path) -> None:
    path = tmp_path / "r.json"
    refused = 0
    for text in mutants(SWEEP.to_dict(), 0):
        path.write_text(text)
        error = refusal(lambda: use(read_sweep(path)))
        if error is not None:
            refused += 1
            assert "not the results of a sweep" in error.what
    assert refused > 100


def test_mutated_csv(tmp_path) -> None:
    path = tmp_path / "r.csv"
    choose = random.Random(0)
    good = to_csv(SWEEP).encode()
    path.write_bytes(good)
    assert read_sweep(path) == SWEEP
    for _ in range(400):
        data = bytearray(good)
        for _ in range(choose.choice((1, 3))):
            start = choose.randrange(len(data))
            new = choose.choice((b"", b'"', b",", b"\n", b"nan", b"[", b"\0", b"\xff", b"9" * 30))
            data[start : start + choose.choice((0, 1, 30))] = new
        path.write_bytes(data)
        error = refusal(lambda: use(read_sweep(path)))
        assert error is None or str(path) in error.where
    path.write_bytes(good + b'"' + b"x" * 200_000 + b"\n")
    with pytest.raises(UsageError, match="not the results"):
        read_sweep(path)


@pytest.mark.parametrize("value", ["x", [], float("nan"), 10**400, True, -1])
@pytest.mark.parametrize("name", ["k", "macs", "output_error", "agreement", "macs_share", "params"])
def test_a_wrong_number_is_named(tmp_path, name: str, value: object) -> None:
    if value == -1 and name not in ("k", "macs", "params"):
        value = "-1"
    data = SWEEP.to_dict()
    data["points"][1][name] = value
    path = tmp_path / "r.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError) as caught:
        read_sweep(path)
    assert name in caught.value.what or "not a number of JSON" in caught.value.what


@pytest.mark.parametrize("seed", range(3))
def test_mutated_plans(seed: int) -> None:
    for text in mutants(PLAN, seed):
        error = refusal(lambda: plan_from_json(text, "p.json"))  # noqa: B023
        assert error is None or error.where.startswith("p.json")


@pytest.mark.parametrize("seed", range(3))
def test_mutated_timings(tmp_path, seed: int) -> None:
    path: Path = tmp_path / "t.json"
    for text in mutants(TIMES, seed):
        path.write_text(text)
        error = refusal(lambda: Cache(path)._read())
        assert error is None or "not a file of timings" in error.what
