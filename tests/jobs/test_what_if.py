"""``dacconv inspect --what-if``: another width or resolution, in every format."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from torch import nn

from dacconv import zoo
from dacconv.errors import UsageError
from dacconv.jobs.what_if import Question, parse_question


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """MobileNet v1 at a quarter of its width, in every format, and a net with a fixed head."""
    folder = tmp_path_factory.mktemp("what_if")
    torch.manual_seed(0)
    net, image = zoo.mobilenet_v1(classes=10, width=0.25).eval(), (torch.zeros(1, 3, 64, 64),)
    fixed = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Flatten(), nn.Linear(4 * 32 * 32, 5)).eval()
    torch.save(net.state_dict(), folder / "net.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without onnxscript is deprecated
        torch.onnx.export(net, image, folder / "net.onnx", dynamo=False)
        torch.onnx.export(fixed, image, folder / "fixed.onnx", dynamo=False)
        torch.export.save(torch.export.export(net, image), folder / "net.pt2")
    return folder


def asked(run, path, *questions: str, size: str = ""):
    words = [word for question in questions for word in ("--what-if", question)]
    opened = ("--input-shape", size) if size else ()
    return run("inspect", path, *words, *opened, "--json", "-")


@pytest.mark.parametrize("suffix", ["onnx", "pt"])
def test_the_costs_are_those_of_the_network_that_has_them(files, run, suffix):
    size = "1,3,64,64" if suffix == "pt" else ""
    result = asked(run, files / f"net.{suffix}", "width=0.5", "resolution=96x32", size=size)
    assert result.code == 0, result.err
    what_if = json.loads(result.out)["what_if"]
    other = zoo.mobilenet_v1(classes=10, width=0.125)
    torch.save(other.state_dict(), files / "other.pt")
    torch.manual_seed(0)
    real = asked(run, files / "other.pt", size="1,3,96,32")
    totals = json.loads(real.out)["totals"]
    assert what_if["after"]["macs"] == totals["macs"]["before"]
    if suffix == "pt":  # an exporter has merged BatchNorm in the ONNX file
        assert what_if["after"]["params"] == sum(p.numel() for p in other.parameters())
    assert what_if["notes"] == [
        "resolution=96x32 needs no training: the network was run at 96x32",
        "width=0.5 is another network: it has to be trained anew; channels are rounded to whole "
        "numbers, and inputs and outputs keep theirs",
    ]


def test_an_exported_program_answers_for_widths_and_refuses_another_resolution(files, run):
    assert asked(run, files / "net.pt2", "width=0.5").code == 0
    result = asked(run, files / "net.pt2", "resolution=32")
    assert result.code == 2
    assert "was exported as 1x3x64x64, not 1x3x32x32" in result.err


def test_a_head_of_a_fixed_size_is_refused(files, run):
    result = asked(run, files / "fixed.onnx", "resolution=96")
    assert result.code == 3
    assert "the network does not run on 96x96 images" in result.err
    assert "a head of a fixed size" in result.err
    assert asked(run, files / "fixed.onnx", "width=0.5").code == 0


def test_the_table_is_printed_in_the_place_of_the_other(files, run):
    result = run("inspect", files / "net.onnx", "--what-if", "width=0.5")
    assert result.out.startswith("what if width = 0.5\n")
    assert "it has to be trained anew" in result.out
    markdown = run("inspect", files / "net.onnx", "--what-if", "width=0.5", "--markdown", "-")
    assert "## What if width = 0.5" in markdown.out


def test_questions_are_parsed():
    assert parse_question(()) is None
    assert parse_question(("width=.5", "resolution=160")) == Question(0.5, (160, 160))
    assert parse_question(("resolution=160x120",)) == Question(1.0, (160, 120))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("depth=2",), "unknown question 'depth=2'"),
        (("width",), "unknown question 'width'"),
        (("width=0",), "no multiplier"),
        (("width=nan",), "no multiplier"),
        (("width=two",), "no multiplier"),
        (("width=1", "width=2"), "given twice"),
        (("resolution=0",), "no size of images"),
        (("resolution=1x2x3",), "no size of images"),
        (("resolution=big",), "no size of images"),
    ],
)
def test_questions_that_make_no_sense(texts, message):
    with pytest.raises(UsageError, match=message):
        parse_question(texts)
