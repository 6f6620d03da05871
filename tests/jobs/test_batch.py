"""Many models at once: every one for itself, nothing twice, and whoever fails is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dacconv.errors import DacconvError, UsageError
from dacconv.jobs.batch import (
    FAILED,
    Handling,
    Task,
    attempt,
    check_outputs,
    exit_code,
    run_all,
    tasks_for,
)
from dacconv.settings import Settings
from tests import cli_nets

RANK = Settings(rank=2, verify=False)


def quiet(*_: object) -> None:
    pass


@pytest.fixture
def zoo(tmp_path: Path) -> list[Path]:
    import onnx

    paths = [tmp_path / name / "net.onnx" for name in ("a", "b", "c")]
    for path in paths:
        path.parent.mkdir()
        onnx.save(cli_nets.onnx_model(), path)
    return paths


def tasks(models, folder=None, **more) -> tuple[Task, ...]:
    return tasks_for(models, RANK, folder, **({"reports": {}, "dry_run": False} | more))


def test_one_that_fails_stops_no_other(zoo) -> None:
    zoo[1].write_text("no model")
    told: list[tuple[str, int, int]] = []
    results = run_all(tasks(zoo), Handling(), lambda r, n, of: told.append((r.status, n, of)))
    assert told == [("done", 1, 3), ("failed", 2, 3), ("done", 3, 3)]
    assert [result.task.source for result in results] == zoo
    assert "text file" in results[1].error
    assert exit_code(results) == 3
    assert [p.with_name("net.dac.onnx").exists() for p in zoo] == [True, False, True]


def test_a_bug_is_told_as_one(zoo, monkeypatch) -> None:
    monkeypatch.setattr("dacconv.jobs.convert.open_with", lambda *_: 1 / 0)
    result = attempt(tasks(zoo)[0], Handling())
    assert (result.status, result.code) == (FAILED, 3)
    assert "this is a bug in dacconv" in result.error


def test_at_once_is_the_same_as_one_by_one(zoo, tmp_path) -> None:
    for name, at_once in (("one", 1), ("two", 2)):
        made = tasks(zoo[:1], tmp_path / name / "x") + tasks(zoo[1:2], tmp_path / name / "y")
        assert exit_code(run_all(made, Handling(at_once), quiet)) == 0
    for folder in ("x", "y"):
        one, two = (tmp_path / name / folder / "net.dac.onnx" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_a_process_that_dies_takes_no_other_with_it(zoo, tmp_path) -> None:
    killer = tmp_path / "killer.py"
    killer.write_text("import os\nos._exit(9)\n")
    import torch

    torch.save(cli_nets.trained().state_dict(), tmp_path / "net.pth")
    deadly = replace(RANK, arch=f"{killer}:Net", input_shape=("1,3,12,12",))
    died = Task("deadly", tmp_path / "net.pth", deadly, tmp_path / "net.dac.pth")
    results = run_all((died, *tasks(zoo)), Handling(2), quiet)
    assert [result.status for result in results] == ["failed", "done", "done", "done"]
    assert "its process died" in results[0].error


def test_outputs_that_collide_are_refused_before_anything_runs(zoo, tmp_path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="would both write it"):
        run_all(tasks(zoo, out), Handling(), quiet)
    assert not out.exists()
    check_outputs(tasks(zoo))
    with pytest.raises(UsageError, match="would both write it"):
        check_outputs(tasks(zoo, reports={"html": out}))
    with pytest.raises(UsageError, match="both write"):  # both have their plan beside them
        check_outputs(tasks([Path("net.pth"), Path("net.safetensors")]))
    check_outputs(tasks([Path("net.pth"), Path("net.onnx")]))
    with pytest.raises(UsageError, match="is the input of"):
        check_outputs(tasks([Path("net.onnx"), Path("net.dac.onnx")]))
    with pytest.raises(UsageError, match="both write"):
        check_outputs(tasks([Path("net.onnx"), Path("../x/net.onnx")], out))


def test_a_folder_that_cannot_be_made(zoo) -> None:
    with pytest.raises(DacconvError, match="cannot write"):
        run_all(tasks(zoo[:1], zoo[1]), Handling(), quiet)


# -- the command --------------------------------------------------------------------------


def test_convert_many(run, work) -> None:
    (work / "bad.onnx").write_text("no model")
    (work / "two.onnx").write_bytes((work / "net.onnx").read_bytes())
    options = ("--rank", 1, "--last-k", 1, "--samples", 2, "-O", "out/x", "--html", "out/pages")
    more = ("--json", "out/x", "--plots", "out/x")
    done = run("convert", "net.onnx", "bad.onnx", "two.onnx", *options, *more)
    assert done.code == 3
    assert sorted(p.name for p in (work / "out/pages").iterdir()) == [
        "net.dac.onnx.html",
        "two.dac.onnx.html",
    ]
    assert (work / "out/x/two.dac.onnx.plots/losses.svg").exists()
    lines = [line.split() for line in done.out.splitlines()]
    assert [line[:2] for line in lines[1:]] == [
        ["net.onnx", "done"],
        ["bad.onnx", "failed"],
        ["two.onnx", "done"],
    ]
    assert "[3/3] two.onnx: done" in done.err
    assert "bad.onnx: this is a text file" in done.err
    report = json.loads((work / "out/x/net.dac.onnx.json").read_text())
    assert report["plan"]["layers"][0]["rank"] == 1
    again = run("convert", "net.onnx", "two.onnx", *options)
    assert again.code == 2
    assert again.err.count("exists already") == 2


def test_many_with_a_missed_gate(run, work) -> None:
    (work / "two.onnx").write_bytes((work / "net.onnx").read_bytes())
    done = run("convert", "net.onnx", "two.onnx", "--rank", 1, "--max-error", "1e-9", "-O", "out")
    assert done.code == 1
    assert done.out.count("gate missed") == 2
    assert "gate missed: two.onnx: relative error" in done.err
    assert not list((work / "out").iterdir())


def test_many_that_cannot_be(run, work) -> None:
    both = ("convert", "net.onnx", "net.pth", "--rank", 1)
    assert "-O names the folder" in run(*both, "-o", "x.onnx").err
    done = run(*both, "--json", "-")
    assert (done.code, done.new) == (2, [])
    assert "needs a folder" in done.err
    assert run("convert").code == 2


def test_one_model_into_a_folder(run, work) -> None:
    done = run("convert", "net.onnx", "--rank", 1, "-O", "new/folder", "--no-verify")
    assert done.code == 0
    assert (work / "new/folder/net.dac.onnx").exists()
    done = run("convert", "net.onnx", "--rank", 1, "-O", "plans", "--dry-run")
    assert (work / "plans/net.plan.json").exists()
