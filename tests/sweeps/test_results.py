"""Results: files that survive, fronts and knees, and picking a point."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacconv.errors import UsageError
from dacconv.graph.findings import Latency
from dacconv.graph.types import Choice
from dacconv.sweeps.files import Journal, read_sweep, set_aside, to_csv, to_json
from dacconv.sweeps.fronts import front, knee
from dacconv.sweeps.pick import pick
from dacconv.sweeps.points import parse_ranks
from dacconv.sweeps.results import PointResult, Quality, Sweep


def point(label: str, macs: int, error: float | None = 0.1, **more) -> PointResult:
    choices = (Choice('conv, "1"', "dac", (2,)), Choice("c2", "dac", (1,)))
    return PointResult(
        label, "single", choices, layer="conv, \"1\"", rank=2, macs=macs, params=macs // 2,
        kernel_error=0.25, output_error=error, **more,
    )  # fmt: skip


def swept(*points: PointResult, **task: float) -> Sweep:
    original = PointResult(
        "original", "original", macs=100, params=50, output_error=0.0, agreement=1.0, task=task
    )
    header = {"sha256": "abc", "source": "n\u00e9t.onnx", "options": {"samples": 8}}
    return Sweep(header, ('conv, "1"', "c2"), {"c2": (0.75, 0.25)}, (original, *points))


FULL = swept(
    point("a@1", 30, 0.5, agreement=0.5, task={"top1": 1 / 3},
          latency=Latency(1.5, 0.7, 2.1, 1.9, 2.3, 10, 1)),
    point("b@2", 60, None, agreement=0.9, task={"top1": None}, note="said: no\u2026"),
    point("c@1", 90, 1e-7, agreement=1.0, task={"top1": 0.9}),
    top1=0.91,
)  # fmt: skip


@pytest.mark.parametrize(("name", "render"), [("r.csv", to_csv), ("r.json", to_json)])
def test_files_give_back_what_was_written(tmp_path, name, render):
    path = tmp_path / name
    path.write_text(render(FULL), encoding="utf-8")
    assert read_sweep(path) == FULL
    assert render(read_sweep(path)) == render(FULL)


@pytest.mark.parametrize("name", ["r.csv", "r.json"])
def test_a_journal_is_whole_after_every_row(tmp_path, name):
    journal = Journal(tmp_path / name, replace(FULL, rows=FULL.rows[:1]), [])
    journal.begin()
    for count, row in enumerate(FULL.points, start=1):
        journal.add(row)
        assert read_sweep(tmp_path / name).points == FULL.points[:count]


def test_a_torn_last_line_is_left_out_wherever_it_tore(tmp_path):
    path = tmp_path / "r.csv"
    text = to_csv(FULL).encode()
    last = text[:-1].rindex(b"\n") + 1
    for end in range(last, len(text)):
        path.write_bytes(text[:end])
        assert read_sweep(path).points == FULL.points[:2]


@pytest.mark.parametrize(
    "text", ["", "# dacconv sweep ", "# dacconv sweep {}\npoint\n", "[1]", "x"]
)
def test_what_is_no_result_is_said_to_be_none(tmp_path, text):
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(UsageError, match="not the results"):
        read_sweep(tmp_path / "r.csv")
    with pytest.raises(UsageError, match="no such file"):
        read_sweep(tmp_path / "none.csv")


def test_old_results_are_set_aside_and_never_lost(tmp_path):
    path = tmp_path / "r.csv"
    for number, expected in enumerate(["r.csv.bak", "r.csv.bak2", "r.csv.bak3"]):
        path.write_text(str(number))
        assert set_aside(path).name == expected
        assert (tmp_path / expected).read_text() == str(number)


def test_json_is_plain(tmp_path):
    data = json.loads(to_json(FULL))
    assert data["points"][1]["macs_share"] == 0.3
    assert data["points"][1]["task:top1"] == 1 / 3


def test_a_pick_is_the_best_within_the_limits():
    assert pick(FULL, "macs<=0.5").label == "a@1"
    assert pick(FULL, "macs <= 95%").label == "c@1"
    assert pick(FULL, "macs<=0.95, min output_error").label == "c@1"
    assert pick(FULL, "agreement>=0.8, min macs").label == "b@2"
    assert pick(FULL, "speedup>2").label == "a@1"
    assert pick(FULL, "b@2").label == "b@2"
    for wrong, said in (
        ("macs<=0.1", "none of the 3 points"),
        ("colour<=1", "no 'colour'"),
        ("macs<=much", "not a number"),
        ("b@3", "the nearest are b@2"),
        ("macs=0.6", "not known of any"),
    ):
        with pytest.raises(UsageError) as error:
            pick(FULL, wrong)
        assert said in str(error.value)


def test_quality_is_the_task_then_agreement_then_errors():
    assert FULL.quality.name == "top1"
    plain = swept(*(replace(row, task={}) for row in FULL.points))
    assert plain.quality.name == "agreement"
    same = swept(*(replace(row, task={}, agreement=1.0) for row in FULL.points))
    assert same.quality.name == "output_error"
    none = swept(*(replace(r, task={}, agreement=None, output_error=None) for r in FULL.points))
    assert none.quality.name == "kernel_error"
    assert none.quality.worth(FULL.points[0]) == -0.25


rows = st.lists(
    st.tuples(st.integers(1, 20), st.floats(0, 1)), min_size=1, max_size=12
).map(lambda pairs: [point(f"p{i}", m, e) for i, (m, e) in enumerate(pairs)])  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(rows)
def test_a_front_holds_what_no_other_beats(found):
    quality = Quality("output_error", False, lambda row: row.output_error)
    best = front(found, lambda row: row.macs, quality)
    beaten = [
        row for row in found
        if any(o.macs <= row.macs and o.output_error <= row.output_error
               and (o.macs, o.output_error) != (row.macs, row.output_error) for o in found)
    ]  # fmt: skip
    assert {(r.macs, r.output_error) for r in best} == {
        (r.macs, r.output_error) for r in found if r not in beaten
    }
    bend = knee(found, lambda row: row.macs, quality)
    assert bend is None or bend in best[1:-1]


def test_a_knee_is_where_the_gain_slows_down():
    quality = Quality("agreement", True, lambda row: row.agreement)
    line = [point(f"p{m}", m, agreement=a) for m, a in ((10, 0.0), (20, 0.8), (60, 0.9), (90, 1.0))]
    assert knee(line, lambda row: row.macs, quality).label == "p20"
    assert knee(line[:2], lambda row: row.macs, quality) is None
    straight = [point(f"p{m}", m, agreement=m / 100) for m in (10, 50, 90)]
    assert knee(straight, lambda row: row.macs, quality) is None


def test_a_collapsed_point_is_no_knee():
    quality = Quality("output_error", False, lambda row: row.output_error)
    pairs = ((30, 1.5), (53, 1.1), (80, 0.5), (91, 0.1), (100, 0.0))
    found = [point(f"p{m}", m, e) for m, e in pairs]
    assert knee(found, lambda row: row.macs, quality).label == "p91"
    assert (
        knee([point(f"p{m}", m, e) for m, e in pairs[:2]] * 2, lambda row: row.macs, quality)
        is None
    )
    ruined = [point(f"p{m}", m, e) for m, e in ((30, 9.0), (53, 8.0), (80, 7.0))]
    assert knee(ruined, lambda row: row.macs, quality) is None


def test_ranks_are_read_as_people_write_them():
    assert parse_ranks("1-3,5") == (1, 2, 3, 5)
    assert parse_ranks("4") == (4,)
    for wrong in ("", "0", "3-1", "a", "1-", "1.5"):
        with pytest.raises(UsageError):
            parse_ranks(wrong)
