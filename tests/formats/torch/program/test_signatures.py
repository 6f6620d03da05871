"""Calls of a .pt2 that do not fit their operators, and shapes that its calls do not give."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dacconv.errors import FormatError
from dacconv.formats import open_model

Node = dict[str, Any]


@pytest.fixture(scope="module")
def plain() -> bytes:
    """A conv, a BatchNorm, a transposed conv, a pool and a linear layer."""
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6), nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 5),
    ).eval()  # fmt: skip
    stream = io.BytesIO()
    torch.export.save(torch.export.export(net, (torch.zeros(2, 4, 8, 8),)), stream)
    return stream.getvalue()


def opened(path: Path, data: bytes, change: Callable[[Any, dict[str, Node]], object]) -> Any:
    """The program with its graph changed; ``change`` takes the graph and its calls by name."""
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(path / "a.pt2", "w") as new,
    ):
        for name in old.namelist():
            record = old.read(name)
            if name.endswith("models/model.json"):
                program = json.loads(record)
                graph = program["graph_module"]["graph"]
                change(graph, {node["name"]: node for node in graph["nodes"]})
                record = json.dumps(program).encode()
            new.writestr(name, record)
    return open_model(path / "a.pt2")


def put(node: Node, name: str, argument: Any) -> None:
    """Give a call an argument by name; behind the others where it has none of that name."""
    for each in node["inputs"]:
        if each["name"] == name:
            each["arg"] = argument
            return
    node["inputs"].append({"name": name, "arg": argument, "kind": 1})


def drop(node: Node, name: str) -> None:
    node["inputs"] = [each for each in node["inputs"] if each["name"] != name]


def ints(*values: int) -> Any:
    return {"as_ints": list(values)}


CONVS = [
    ("stride", ints(0, 0), "its stride is"),
    ("stride", ints(1, -1), "its stride is"),
    ("stride", ints(1 << 40, 1), "elements"),
    ("stride", ints(1, 1, 1), "3 numbers, not 2"),
    ("padding", ints(-1, 0), "its padding is"),
    ("padding", ints(1 << 62, 0), "elements"),
    ("dilation", ints(0, 1), "its dilation is"),
    ("dilation", ints(1, -3), "its dilation is"),
    ("groups", {"as_int": 0}, "groups"),
    ("groups", {"as_int": -2}, "groups"),
    ("groups", {"as_int": 5}, "does not divide"),
    ("groups", {"as_int": 1}, "channels"),
    ("groups", {"as_float": 2.0}, "wrong kind"),
    ("groups", {"as_bool": True}, "wrong kind"),
    ("stride", {"as_string": "1"}, "wrong kind"),
    ("stride", {"as_floats": [1.0, 1.0]}, "wrong kind"),
    ("weight", {"as_none": True}, "wrong kind"),
    ("weight", {"as_float": 1.0}, "wrong kind"),
    ("weight", {"as_tensors": [{"name": "p_0_weight"}]}, "wrong kind"),
    ("bias", {"as_tensor": {"name": "p_6_bias"}}, "bias"),
    ("weight", {"as_tensor": {"name": "p_6_weight"}}, "axes of a conv"),
    ("input", {"as_tensor": {"name": "p_6_bias"}}, "axes of a conv"),
    ("input", {"as_tensor": {"name": "linear"}}, "not computed before"),
    ("input", {"as_tensor": {"name": "nothing"}}, "not computed before"),
    ("input", {"as_sym_int": {"as_name": "input"}}, "of the kind tensor"),
]


@pytest.mark.parametrize(("name", "argument", "words"), CONVS)
def test_convs_that_are_none(
    tmp_path: Path, plain: bytes, name: str, argument: Any, words: str
) -> None:
    def change(graph: Any, calls: dict[str, Node]) -> None:
        conv = calls["conv2d"]
        for each, value in (("stride", ints(1, 1)), ("padding", ints(1, 1)),
                            ("dilation", ints(1, 1)), ("groups", {"as_int": 2})):  # fmt: skip
            drop(conv, each)
            put(conv, each, value)
        put(conv, name, argument)

    with pytest.raises(FormatError, match=words) as caught:
        opened(tmp_path, plain, change)
    assert "torch.ops.aten.conv2d.default" in str(caught.value)


@pytest.mark.parametrize(
    ("call", "change", "words"),
    [
        ("conv2d", lambda c: drop(c, "weight"), "weight is missing"),
        ("conv2d", lambda c: put(c, "strides", ints(1, 1)), "no argument 'strides'"),
        ("conv2d", lambda c: c["inputs"].reverse(), "not in order"),
        ("conv2d", lambda c: c["inputs"].append(c["inputs"][0]), "not in order"),
        ("conv_transpose2d", lambda c: put(c, "stride", ints(0, 2)), "its stride is"),
        ("batch_norm", lambda c: drop(c, "eps"), "eps is missing"),
        ("batch_norm", lambda c: put(c, "eps", {"as_string": "x"}), "wrong kind"),
        ("batch_norm", lambda c: put(c, "training", {"as_int": 0}), "wrong kind"),
        ("batch_norm", lambda c: put(c, "weight", {"as_tensor": {"name": "p_6_bias"}}), "."),
        ("relu", lambda c: put(c, "self", {"as_tensors": []}), "."),
        ("flatten", lambda c: put(c, "start_dim", {"as_int": 9}), "cannot be made"),
        ("linear", lambda c: put(c, "weight", {"as_tensor": {"name": "p_0_weight"}}), "."),
        ("relu", lambda c: c.update(outputs=[]), "."),
        ("relu", lambda c: c["outputs"][0]["as_tensor"].update(name="conv2d"), "two values"),
        ("relu", lambda c: c["outputs"][0]["as_tensor"].update(name="other"), "not describe"),
    ],
)
def test_calls_that_do_not_fit(
    tmp_path: Path, plain: bytes, call: str, change: Callable[[Node], object], words: str
) -> None:
    with pytest.raises(FormatError, match=words):
        opened(tmp_path, plain, lambda graph, calls: change(calls[call]))


@pytest.mark.parametrize("value", ["conv2d", "batch_norm", "linear", "p_0_weight", "p_1_bias"])
@pytest.mark.parametrize(
    "change",
    [lambda m: m["sizes"][0].update(as_int=7), lambda m: m["sizes"].pop(),
     lambda m: m.update(dtype=8), lambda m: m["sizes"][0].update(as_int=1 << 50)],
)  # fmt: skip
def test_shapes_that_the_calls_do_not_give(
    tmp_path: Path, plain: bytes, value: str, change: Callable[[Any], object]
) -> None:
    with pytest.raises(FormatError):
        opened(tmp_path, plain, lambda graph, calls: change(graph["tensor_values"][value]))


def test_the_plain_program_fits(tmp_path: Path, plain: bytes) -> None:
    model = opened(tmp_path, plain, lambda graph, calls: None)
    assert [node.kind for node in model.graph().nodes][:2] == ["conv2d", "batch_norm"]
