"""Whole commands, as a user types them: what is printed, written and returned."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import dacconv
from dacconv.support import files
from tests import cli_nets
from tests.conftest import ROOT

HERE = ROOT / "tests"
ARCH = ("--arch", f"{HERE / 'cli_nets.py'}:SmallNet", "--input-shape", "1,3,12,12")


def scores(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": cli_nets.images()})[0]


# -- the job ------------------------------------------------------------------------------


def test_convert_onnx(run, work):
    done = run("convert", "net.onnx", "--rank", 2, "--last-k", 2)
    assert (done.code, done.new, done.kept) == (0, ["net.dac.onnx"], True)
    assert "2 of 5 layers split" in done.out
    assert "wrote net.dac.onnx" in done.out
    assert "\x1b" not in done.out + done.err
    proto = onnx.load(work / "net.dac.onnx")
    onnx.checker.check_model(proto)
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(facts["dacconv"])["options"] == {"rank": 2, "last_k": 2}
    assert scores(work / "net.dac.onnx").shape == (16, 7)


def test_full_rank_reproduces_the_network_in_every_format(run, work):
    expected = scores(work / "net.onnx")
    everything = ("--rank", 9, "--allow-costlier", "--max-error", "1e-5")
    assert run("convert", "net.onnx", *everything).code == 0
    np.testing.assert_allclose(scores(work / "net.dac.onnx"), expected, rtol=1e-4, atol=1e-5)
    for name in ("net.pth", "net.safetensors"):
        assert run("convert", name, *everything, *ARCH, "--force").code == 0
        target = work / name.replace("net", "net.dac")
        net = dacconv.apply(cli_nets.SmallNet(), target).eval()
        with torch.no_grad():
            actual = net(torch.from_numpy(cli_nets.images())).numpy()
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_both_formats_give_the_same_numbers(run):
    one = json.loads(run("convert", "net.onnx", "--rank", 3, "--json", "-").out)
    two = json.loads(run("convert", "net.pth", "--rank", 3, *ARCH, "--json", "-").out)
    assert one["totals"]["macs"] == two["totals"]["macs"]
    for mine, theirs in zip(one["layers"], two["layers"], strict=True):
        assert mine["name"] == theirs["name"]
        assert mine["kernel_error"] == theirs["kernel_error"]


def test_weights_alone(run, work):
    done = run("convert", "net.pth", "--rank", 2, "--json", "r.json")
    assert done.code == 0
    assert done.new == ["net.dac.plan.json", "net.dac.pth", "r.json"]
    report = json.loads((work / "r.json").read_text())
    assert report["order"] == "file"
    assert report["totals"]["macs"] == {"before": None, "after": None}
    assert report["verification"] is None
    assert "not verified" in done.out
    dacconv.apply(cli_nets.SmallNet(), work / "net.dac.pth")


def test_the_same_input_and_options_give_the_same_bytes(run, work):
    for name, options in (("net.onnx", ()), ("net.pth", ARCH), ("net.safetensors", ARCH)):
        one, two = work / f"one{Path(name).suffix}", work / f"two{Path(name).suffix}"
        for target in (one, two):
            assert run("convert", name, "--rank", 2, *options, "-o", target).code == 0
        assert one.read_bytes() == two.read_bytes()


def test_inspect(run):
    done = run("inspect", "net.onnx")
    assert done.code == 0
    rows = [line.split()[0] for line in done.out.splitlines()[1:6]]
    assert rows == ["conv1", "conv2", "conv3", "point", "fc"]
    data = json.loads(run("inspect", "net.pth", *ARCH, "--json", "-").out)
    assert [row["name"] for row in data["layers"]] == rows
    assert [row["eligible"] for row in data["layers"]] == [True, True, True, True, True]


def test_fuse(run, work):
    done = run("fuse", "net.onnx")
    assert (done.code, done.new) == (0, ["net.fused.onnx"])
    kinds = [node.op_type for node in onnx.load(work / "net.fused.onnx").graph.node]
    assert "BatchNormalization" not in kinds
    np.testing.assert_allclose(
        scores(work / "net.fused.onnx"), scores(work / "net.onnx"), rtol=1e-4, atol=1e-5
    )
    refused = run("fuse", "net.pth")
    assert refused.code == 3
    assert "--arch" in refused.err


def test_check(run):
    run("convert", "net.onnx", "--rank", 2)
    done = run("check", "net.onnx", "net.dac.onnx", "--json", "-")
    error = json.loads(done.out)["verification"]["relative_error"]
    assert done.code == 0
    assert error > 0
    assert run("check", "net.onnx", "net.onnx", "--max-error", "0").code == 0
    missed = run("check", "net.onnx", "net.dac.onnx", "--max-error", error / 2)
    assert missed.code == 1
    assert "gate missed" in missed.err


def test_check_of_state_dicts(run):
    assert run("convert", "net.pth", "--rank", 9, "--allow-costlier", *ARCH).code == 0
    done = run("check", "net.pth", "net.dac.pth", *ARCH, "--max-error", "1e-5")
    assert done.code == 0


def test_a_plan_is_written_edited_and_fed_back(run, work):
    dry = run("convert", "net.onnx", "--rank", 2, "--dry-run")
    assert (dry.code, dry.new) == (0, ["net.plan.json"])
    plan = json.loads((work / "net.plan.json").read_text())
    plan["layers"] = [{"name": "conv2", "method": "dac", "rank": 4}]
    (work / "net.plan.json").write_text(json.dumps(plan))
    done = run("convert", "net.onnx", "--plan", "net.plan.json", "--json", "-")
    ranks = {row["name"]: row["rank"] for row in json.loads(done.out)["layers"]}
    assert ranks == {"conv1": None, "conv2": 4, "conv3": None, "point": None, "fc": None}


@pytest.mark.parametrize("config", sorted((HERE.parent / "configs").glob("*.toml")))
def test_the_configurations_run(run, config):
    text = config.read_text()
    gates = ("--max-error", 10, "--min-agreement", "0%", "--min-saving", "0%")
    done = run("convert", "net.onnx", "--config", config, *(gates if "max-error" in text else ()))
    assert done.code == 0
    assert done.new == ["net.dac.onnx"]


def test_ranks_and_energy(run):
    done = run("convert", "net.onnx", "--ranks", "conv1=2,conv[23]=3", "--json", "-")
    assert [row["rank"] for row in json.loads(done.out)["layers"]] == [2, 3, 3, None, None]
    more = run(
        "convert", "net.onnx", "--energy", 0.6, "--energy-over", "max", "--force", "--json", "-"
    )
    ranks = [row["rank"] for row in json.loads(more.out)["layers"]]
    assert all(rank is None or rank > 1 for rank in ranks)


# -- gates and targets ---------------------------------------------------------------------


def test_a_missed_gate_writes_nothing_unless_told(run):
    missed = run("convert", "net.onnx", "--rank", 1, "--max-error", "1e-6", "--min-saving", "99%")
    assert (missed.code, missed.new) == (1, [])
    assert missed.err.count("gate missed") == 2
    kept = run("convert", "net.onnx", "--rank", 1, "--max-error", "1e-6", "--keep")
    assert (kept.code, kept.new) == (1, ["net.dac.onnx"])


def test_nothing_is_overwritten(run, work):
    assert run("convert", "net.onnx", "--rank", 2).code == 0
    again = run("convert", "net.onnx", "--rank", 3)
    assert (again.code, again.kept) == (2, True)
    assert "--force" in again.err
    assert run("convert", "net.onnx", "--rank", 3, "--force").code == 0
    onto_itself = run("convert", "net.onnx", "--rank", 3, "-o", "net.onnx", "--force")
    assert (onto_itself.code, onto_itself.kept) == (2, True)


@pytest.mark.parametrize("target", ["no/such/folder/x.onnx", "."])
def test_a_target_that_cannot_be(run, target):
    done = run("convert", "net.onnx", "--rank", 2, "-o", target)
    assert (done.code, done.new) == (2, [])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_to_write(run, work):
    locked = work / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    done = run("convert", "net.onnx", "--rank", 2, "-o", locked / "x.onnx")
    assert done.code == 3
    assert "cannot write" in done.err


@pytest.mark.parametrize(
    "failure", [PermissionError(13, "Permission denied"), OSError(28, "No space")]
)
@pytest.mark.parametrize("name", ["net.onnx", "net.pth", "net.safetensors"])
def test_a_full_or_locked_disk_leaves_nothing(run, monkeypatch, name, failure):
    def refuse(*_: object) -> None:
        raise failure

    monkeypatch.setattr(files.Path, "replace", refuse)
    done = run("convert", name, "--rank", 2, *(() if name == "net.onnx" else ARCH))
    assert (done.code, done.new) == (3, [])
    assert "cannot write" in done.err


# -- careless input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["net.onnx", "--rank", "0"], 2, "not a whole number above 0"),
        (["net.onnx", "--rank", "-1"], 2, "not a whole number above 0"),
        (["net.onnx", "--rank", "2.5"], 2, "2.5"),
        (["net.onnx", "--rank", "2", "--energy", "0.9"], 2, "--rank and --energy"),
        (["net.onnx", "--rank", "2", "--first-k", "9"], 2, "only 3 can be split"),
        (["net.onnx", "--rank", "2", "--first-k", "1", "--last-k", "1"], 2, "exclude each other"),
        (["net.onnx", "--rank", "2", "--layers", "cnov1"], 2, "conv1"),
        (["net.onnx", "--rank", "2", "--layers", "fc"], 2, "a linear layer"),
        (["net.onnx", "--rank", "2", "--input-shape", "1,3"], 2, "image"),
        (["net.onnx", "--rank", "2", "--input-shape", "x:1,3,12,12"], 2, "image"),
        (["net.onnx", "--rank", "2", "--max-error", "1", "--no-verify"], 2, "verification"),
        (["net.onnx", "--rank", "2", "--max-error", "nan"], 2, "not an error"),
        (["net.onnx", "--rank", "2", "--min-saving", "4000"], 2, "not a share"),
        (
            ["net.onnx", "--rank", "2", "--min-saving", "40%", "--layers", "*1", "--last-k", "2"],
            2,
            "1 can",
        ),
        (["net.onnx", "--plan", "net.onnx"], 2, "not readable"),
        (["net.onnx", "--rank", "2", "--config", "no.toml"], 2, "no such file"),
        (["missing.onnx", "--rank", "2"], 3, "missing.onnx"),
        ([".", "--rank", "2"], 3, "a folder"),
        (["net.pth", "--rank", "2", "--arch", "no.such:Thing"], 2, "no.such"),
        (
            ["net.pth", "--rank", "2", "--arch", "torch.nn:Identity", "--input-shape", "1,3"],
            2,
            "conv1",
        ),
        (["net.pth", "--rank", "2", "--max-error", "1"], 2, "gates"),
    ],
)
def test_bad_input_is_told_in_one_message(run, args, code, words):
    done = run("convert", *args)
    assert (done.code, done.new, done.kept) == (code, [], True)
    assert words in done.err
    assert done.out == ""


def test_a_huge_rank_is_full_rank_and_leaves_costlier_layers_alone(run, work):
    done = run("convert", "net.onnx", "--rank", 10**9)
    assert done.code == 0
    assert "above full rank 9" in done.out
    assert "0 of 5 layers split" in done.out
    np.testing.assert_allclose(
        scores(work / "net.dac.onnx"), scores(work / "net.onnx"), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_weights_are_named(run, work, value):
    proto = onnx.load(work / "net.onnx")
    for tensor in proto.graph.initializer:
        if tensor.name == "conv2.weight":
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[0, 0, 0, 0] = value
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, work / "broken.onnx")
    done = run("convert", "broken.onnx", "--rank", 2)
    assert (done.code, done.new) == (3, [])
    assert "conv2: 1 of 3456 weights" in done.err
    assert run("convert", "broken.onnx", "--rank", 2, "--skip", "conv2").code in (0, 1)


def test_zero_kernels_and_zero_channels(run, work):
    state = cli_nets.trained().state_dict()
    state["conv2.weight"].zero_()
    state["conv3.weight"][:, 5] = 0
    torch.save(state, work / "zero.pth")
    done = run("convert", "zero.pth", "--rank", 9, "--allow-costlier", "--max-error", "1e-5", *ARCH)
    assert done.code == 0


def test_a_model_without_eligible_convs(run, work):
    torch.save({"fc.weight": torch.ones(3, 4), "dw.weight": torch.ones(8, 8, 1, 1)}, work / "m.pth")
    done = run("convert", "m.pth", "--rank", 2)
    assert (done.code, done.new) == (3, [])
    assert "no layer of this model can be split" in done.err


@pytest.mark.parametrize("name", ["net.onnx", "net.pth", "net.safetensors"])
def test_truncated_and_flipped_files(run, work, name):
    data = (work / name).read_bytes()
    rng = np.random.default_rng(0)
    for cut in (0, 1, 100, len(data) // 2, len(data) - 1):
        (work / f"bad-{name}").write_bytes(data[:cut])
        done = run("convert", f"bad-{name}", "--rank", 2, "--no-verify", "--force")
        assert done.code == 3, cut
        assert done.new == []
    for _ in range(30):
        broken = bytearray(data)
        broken[rng.integers(min(len(data), 3000))] ^= 1 << int(rng.integers(8))
        (work / f"bad-{name}").write_bytes(broken)
        run("convert", f"bad-{name}", "--rank", 2, "--no-verify", "--force")  # told, or harmless


def test_a_pickle_bomb_does_not_run(run, work):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (work / "exploded",))

    torch.save({"conv.weight": Bomb()}, work / "bomb.pth")
    done = run("convert", "bomb.pth", "--rank", 2)
    assert (done.code, done.new) == (3, [])
    assert "--trust-pickle" in done.err


def test_other_formats_are_recognised(run, work):
    (work / "text.pt").write_text("hello")
    (work / "m.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(100))
    (work / "m.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    for name, words in (("text.pt", "text"), ("m.tflite", "TensorFlow Lite"), ("m.h5", "Keras")):
        done = run("convert", name, "--rank", 2)
        assert (done.code, done.new) == (3, [])
        assert words in done.err


# -- the surface ---------------------------------------------------------------------------


def test_version_and_help(run):
    assert run("--version").out == f"dacconv {dacconv.__version__}\n"
    assert "convert" in run("--help").out
    assert run("convert", "--no-such-option").code == 2


def test_help_loads_no_framework(nets):
    import subprocess

    code = (
        "import sys; sys.argv = ['dacconv', '--help']\n"
        "from dacconv.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_converting_onnx_loads_no_torch(nets, tmp_path):
    import subprocess

    code = (
        f"import sys; sys.argv = ['dacconv', 'convert', r'{nets / 'net.onnx'}', '--rank', '2',"
        f" '-o', r'{tmp_path / 'o.onnx'}']\n"
        "from dacconv.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_same_from_python(work):
    model = dacconv.load("net.onnx")
    plan = dacconv.plan(model, rank=2, last_k=2)
    done = dacconv.convert(model, plan)
    assert isinstance(done.report, dacconv.Report)
    assert [row.name for row in done.report.converted] == ["conv2", "conv3"]
    assert done.save("out.onnx") == (Path("out.onnx"),)
    assert 0 < dacconv.verify(model, dacconv.load("out.onnx")).relative_error < 2
    assert [layer.name for layer in dacconv.survey(model)][:3] == ["conv1", "conv2", "conv3"]


def test_plots(run, work):
    assert run("convert", "net.onnx", "--rank", 2, "--plots", "figures/net").code == 0
    drawn = {path.name for path in (work / "figures" / "net").iterdir()}
    assert drawn == {"costs.png", "costs.svg", "losses.png", "losses.svg"}
    assert (work / "figures" / "net" / "costs.png").read_bytes().startswith(b"\x89PNG")
    assert run("inspect", "net.onnx", "--plots", "as-is").code == 0
    assert {path.stem for path in (work / "as-is").iterdir()} == {"costs"}
    done = run("inspect", "net.onnx", "--plots", "-")
    assert done.code == 2
    assert "figures need a folder" in done.err
    for command in (("convert", "--rank", 1, "-o", "x.onnx"), ("sweep", "--ranks", 1)):
        done = run(*command, "net.onnx", "--plots", "net.pth")
        assert done.code == 2
        assert "net.pth: is a file; figures need a folder" in done.err
    done = run("convert", "net.onnx", "--rank", 1, "-o", "x.onnx", "--json", "missing/x.json")
    assert done.code == 2
    assert "--json missing/x.json: its folder does not exist" in done.err
    assert not (work / "x.onnx").exists()


def test_html(run, work):
    assert run("convert", "net.onnx", "--rank", 2, "--html", "r.html").code == 0
    text = (work / "r.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "of the MACs saved" in text
    done = run("check", "net.onnx", "net.dac.onnx", "--max-error", 0, "--html", "-")
    assert done.code == 1
    assert done.out.startswith("<!doctype html>")
    assert "Gate missed: relative error" in done.out
    assert run("inspect", "net.onnx", "--html", "-").out.startswith("<!doctype html>")
    done = run("inspect", "net.onnx", "--html", "-", "--json", "-")
    assert (done.code, done.out) == (2, "")
    assert "--json - and --html - exclude each other" in done.err
