"""`dacconv sweep` as a user types it: results that survive, points that become plans."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

import dacconv
from dacconv.api import sweep
from dacconv.jobs import sweep as sweep_job
from dacconv.settings import Settings, SweepOptions
from dacconv.sweeps.files import read_sweep, to_csv
from dacconv.sweeps.measure import Bench
from tests import cli_nets

USER = '''
import numpy as np

calls = []

def both(net):
    """Called with the model."""
    scores = net(np.ones((2, 3, 12, 12)))
    assert scores.shape == (2, 7), net.inputs
    return {"spread": scores.std(), "low": float(scores.min())}

def one(net):
    print("chatter")
    return 0.5

def broken(net):
    return helper(net)

def helper(net):
    raise KeyError("my own fault")

def words(net):
    return "good"
'''


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    onnx.save(cli_nets.onnx_model(), tmp_path / "net.onnx")
    (tmp_path / "mine.py").write_text(USER)
    x = cli_nets.images(40)
    np.savez(tmp_path / "data.npz", Images=x, labels=np.arange(40) % 7)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """The labels of the points that are measured."""
    labels: list[str] = []
    measure = Bench.measure

    def spy(self, points, **more):
        labels.extend(point.label for point in points)
        return measure(self, points, **more)

    monkeypatch.setattr(Bench, "measure", spy)
    return labels


def test_tables_results_and_figures(run, work):
    done = run("sweep", "net.onnx", "--ranks", "1-2", "--samples", 4, "--mode", "single,last-k",
               "-o", "r.csv", "--plots", "figures", "--data", "data.npz",
               "--html", "r.html")  # fmt: skip
    assert done.code == 0, done.err
    page = (work / "r.html").read_text()
    assert "Sweep of net.onnx" in page
    assert "--from-sweep r.csv" in page
    assert "<image" not in page  # nothing to load: the page forbids it
    assert "top-1, one layer split at a time" in done.out
    assert "most sensitive" in done.out
    assert "\x1b" not in done.out + done.err
    found = read_sweep(work / "r.csv")
    assert len(found.points) == 12
    assert set(found.original.task) == {"top1"}
    scores = dacconv.load("net.onnx").runner()({"image": cli_nets.images(40)})["scores"]
    expected = float((scores.argmax(1) == np.arange(40) % 7).mean())
    assert found.original.task["top1"] == pytest.approx(expected)
    names = sorted(path.name for path in (work / "figures").iterdir())
    kinds = ("first-last", "heatmap", "pareto", "single", "spectra")
    assert names == [f"{kind}.{suffix}" for kind in kinds for suffix in ("png", "svg")]


@pytest.mark.parametrize("name", ["r.csv", "r.json"])
def test_finished_points_are_never_computed_again(run, work, counted, name):
    first = ("sweep", "net.onnx", "--samples", 4, "--ranks", "1,2", "-o", name)
    assert run(*first).code == 0
    whole = (work / name).read_bytes()
    counted.clear()
    done = run(*first)
    assert "6 of 6 points are in" in done.err
    assert counted == []
    assert (work / name).read_bytes() == whole
    done = run(*first[:-4], "--ranks", "2,3", "-o", name)  # others stay
    assert sorted(counted) == ["conv1@3", "conv2@3", "conv3@3"]
    assert "3 of 6 points are in" in done.err
    assert "3 points of other modes or ranks stay" in done.err
    assert len(read_sweep(work / name).points) == 9
    assert run(*first, "--force").code == 0
    assert (work / name).read_bytes() == whole


def test_what_is_torn_is_computed_again(run, work, counted):
    command = ("sweep", "net.onnx", "--samples", 4, "--ranks", "1,2", "-o", "r.csv")
    run(*command)
    whole = (work / "r.csv").read_bytes()
    (work / "r.csv").write_bytes(whole[:-50])
    counted.clear()
    assert run(*command).code == 0
    assert counted == ["conv3@2"]
    assert (work / "r.csv").read_bytes() == whole


def test_other_options_or_another_model_start_afresh_and_lose_nothing(run, work):
    command = ("sweep", "net.onnx", "--ranks", 1, "-o", "r.csv", "--samples")
    run(*command, 4)
    before = (work / "r.csv").read_bytes()
    done = run(*command, 5)
    assert "--samples was 4 and is 5" in done.err
    assert (work / "r.csv.bak").read_bytes() == before
    model = cli_nets.onnx_model()
    model.producer_name = "another"
    onnx.save(model, work / "net.onnx")
    assert "the model has changed" in run(*command, 5).err
    assert (work / "r.csv.bak2").exists()
    (work / "notes.csv").write_text("mine\n")
    done = run("sweep", "net.onnx", "--ranks", 1, "-o", "notes.csv")
    assert (done.code, (work / "notes.csv").read_text()) == (2, "mine\n")
    assert "not the results of a sweep" in done.err


def test_a_point_becomes_a_plan(run, work):
    run("sweep", "net.onnx", "--mode", "last-k", "--ranks", "1-3", "-o", "r.json", "--samples", 8)
    found = read_sweep(work / "r.json")
    done = run("convert", "net.onnx", "--from-sweep", "r.json", "--pick", "last-2@2",
               "--samples", 8, "--json", "-")  # fmt: skip
    assert done.code == 0, done.err
    report = json.loads(done.out)
    row = next(row for row in found.points if row.label == "last-2@2")
    assert report["totals"]["macs"]["after"] == row.macs
    assert report["totals"]["params"]["after"] == row.params
    error = report["verification"]["relative_error"]
    assert error == pytest.approx(row.output_error, rel=1e-3)
    within = run("convert", "net.onnx", "--from-sweep", "r.json", "--pick", "macs<=0.8",
                 "-o", "b.onnx", "--json", "-")  # fmt: skip
    totals = json.loads(within.out)["totals"]["macs"]
    assert totals["after"] <= 0.8 * totals["before"]
    for options, said in (
        (("--pick", "macs<=0.01"), "none of the 9 points"),
        ((), "which point?"),
        (("--pick", "knee", "--rank", 2), "excludes --rank"),
        (("--pick", "last-1@1", "--kernel-scale", "unit"), "run with --kernel-scale own"),
    ):
        done = run("convert", "net.onnx", "--from-sweep", "r.json", *options, "-o", "c.onnx")
        assert done.code == 2
        assert said in done.err
    model = cli_nets.onnx_model()
    model.producer_name = "another"
    onnx.save(model, work / "other.onnx")
    done = run("convert", "other.onnx", "--from-sweep", "r.json", "--pick", "knee")
    assert "of another model (net.onnx)" in done.err
    done = run("convert", "net.onnx", "--pick", "knee", "-o", "d.onnx")
    assert "--from-sweep" in done.err


def test_the_users_own_measure(run, work):
    done = run("sweep", "net.onnx", "--ranks", 1, "--samples", 2, "--eval", "mine.py:both",
               "-o", "r.csv")  # fmt: skip
    assert done.code == 0, done.err
    assert set(read_sweep(work / "r.csv").points[0].task) == {"spread", "low"}
    done = run("sweep", "net.onnx", "--ranks", 1, "--samples", 2, "--eval", "mine.py:one")
    assert "chatter" not in done.out
    assert "task 0.5" in done.out


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("broken", "your broken raised KeyError for point original"),
        ("words", "returned str for 'task', not a number"),
        ("brokn", "has no 'brokn'"),
    ],
)
def test_the_users_own_errors_are_told_as_such(run, work, function, said):
    done = run("sweep", "net.onnx", "--ranks", 1, "--samples", 2, "--eval", f"mine.py:{function}",
               own="mine.py")  # fmt: skip
    assert done.code == 2
    assert said in done.err
    if function == "broken":
        assert "in helper" in done.err
        assert 'raise KeyError("my own fault")' in done.err
    assert f"dacconv{os.sep}sweeps" not in done.err


def test_wrong_usage(run, work):
    np.savez(work / "wrong.npz", pictures=np.zeros((2, 3, 12, 12)))
    np.savez(work / "small.npz", x=np.zeros((2, 3, 5, 5), np.uint8), y=np.zeros(2, int))
    for options, said in (
        (("--mode", "all"), "not one of single"),
        (("--ranks", "0"), "not a list of ranks"),
        (("--mode", "budget"), "no budgets"),
        (("--budgets", "0.5"), "--mode budget"),
        (("-o", "r.txt"), ".csv or .json"),
        (("-o", "none/r.csv"), "folder does not exist"),
        (("--data", "none.npz"), "no such file"),
        (("--data", "wrong.npz"), "holds no images: it has pictures 2x3x12x12"),
        (("--data", "small.npz"), "the model takes 3x12x12"),
        (("--jobs", "2", "--dask", "tcp://x:1"), "use one of them"),
        (("--jobs", "2", "--bench"), "without other work on the machine"),
    ):
        done = run("sweep", "net.onnx", "--samples", 2, *options)
        assert (done.code, said in done.err) == (2, True), done.err


def test_a_killed_sweep_goes_on_where_it_stopped(work, counted):
    """SIGKILL while points come in: every row that was written stays, and the rest is done."""
    slow = "import time\ndef slow(net):\n    time.sleep(0.2)\n    return 1.0\n"
    (work / "slow.py").write_text(slow)
    command = [sys.executable, "-m", "dacconv", "sweep", "net.onnx", "--ranks", "1-3",
               "--samples", "2", "--eval", "slow.py:slow", "-o", "r.csv"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if (work / "r.csv").exists() and len(read_sweep(work / "r.csv").points) >= 2:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    kept = [row.label for row in read_sweep(work / "r.csv").points]
    assert 2 <= len(kept) < 9
    options = SweepOptions(ranks="1-3", task="slow.py:slow")
    done = sweep_job.sweep_file(
        Path("net.onnx"), Settings(samples=2), options, output=Path("r.csv")
    ).sweep
    assert not set(kept) & set(counted)
    assert sorted([*kept, *counted]) == sorted(row.label for row in done.points)
    assert len(done.points) == 9


def test_python_gives_the_same_rows(run, work):
    run("sweep", "net.onnx", "--ranks", "1,2", "--samples", 4, "-o", "r.csv")
    found = sweep(dacconv.load("net.onnx"), ranks=(1, 2), samples=4)
    assert found.rows == read_sweep(work / "r.csv").rows
    assert to_csv(found).splitlines()[1:] == (work / "r.csv").read_text().splitlines()[1:]


@pytest.mark.parametrize("method", ["spatial", "auto"])
def test_any_method_is_swept_and_named_in_the_report(run, work, method):
    done = run("sweep", "net.onnx", "--method", method, "--mode", "single,uniform,budget",
               "--ranks", "1,2", "--budgets", "0.7", "--calibrate", "none", "--samples", 4,
               "-o", "r.csv", "--html", "r.html")  # fmt: skip
    assert done.code == 0, done.err
    found = read_sweep(work / "r.csv")
    labels = [row.label for row in found.points]
    assert {f"conv1@{method}:1", f"uniform@{method}:2", "budget@0.7"} <= set(labels)
    assert len(set(labels)) == len(labels)
    assert (method == "auto") == (len(found.methods) > 1 or found.methods != (method,))
    page = (work / "r.html").read_text()
    for name in found.methods:
        assert name in done.out
        assert name in page
    if method == "spatial":
        assert "spatial rank 2" in done.out
        assert any(line.split()[1:3] == ["spatial", "1"] for line in done.out.splitlines())
