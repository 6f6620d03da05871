"""The Python API: modules in memory, typed options, errors in Python's words, records."""

from __future__ import annotations

import copy
import inspect
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dacconv
from dacconv.errors import FormatError, UnsupportedError, UsageError
from dacconv.keywords import keywords


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def without_training_notes():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="every BatchNorm was merged")
        yield


class TestModulesInMemory:
    def test_two_lines_give_a_module_back(self) -> None:
        before = net().eval()
        state = copy.deepcopy(before.state_dict())
        after = dacconv.convert(before, X, rank=9, allow_costlier=True, method="dac")
        assert isinstance(after, nn.Sequential)
        assert torch.allclose(before(X), after(X), atol=1e-4)
        assert list(before.state_dict()) == list(state)
        assert all(torch.equal(before.state_dict()[name], state[name]) for name in state)
        assert not [key for m in after.modules() for key in vars(m) if "dacconv" in key]
        small = dacconv.convert(before, X, rank=2, verify=False)
        sizes = [sum(p.numel() for p in m.parameters()) for m in (before, small)]
        assert sizes[1] < sizes[0]

    def test_training_mode_and_gradients_stay(self) -> None:
        before = net().train()
        after = dacconv.convert(before, X, rank=3, fuse=False, verify=False)
        assert after.training
        assert before.training
        assert all(p.requires_grad for p in after.parameters())
        assert any(isinstance(m, nn.BatchNorm2d) for m in after.modules())

    def test_several_inputs(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(1, 16, 3)

            def forward(self, x: Tensor, mask: Tensor) -> Tensor:
                return self.a(x) + self.b(mask)

        two, mask = Two().eval(), torch.ones(2, 1, 12, 12)
        for inputs in ((X, mask), {"x": X, "mask": mask}):
            after = dacconv.convert(two, inputs, rank=9, allow_costlier=True, verify=False)
            assert torch.allclose(two(X, mask), after(X, mask), atol=1e-4)
        with pytest.raises(UsageError, match="forward takes x, mask"):
            dacconv.convert(two, (X, mask, X), rank=1)
        with pytest.raises(UsageError, match="example_inputs"):
            dacconv.convert(two, 3, rank=1)  # type: ignore[call-overload]

    def test_the_steps_one_by_one(self, tmp_path) -> None:
        model = dacconv.load(net().eval(), input_shape=(1, 3, 12, 12))
        plan = dacconv.plan(model, rank=2)
        conversion = dacconv.convert(model, plan)
        assert isinstance(conversion.module, nn.Sequential)
        check = dacconv.verify(model, conversion.model, samples=4)
        assert check.relative_error is not None
        files = conversion.save(tmp_path / "a.pt")
        assert [file.name for file in files] == ["a.pt", "a.plan.json"]
        again = dacconv.load(tmp_path / "a.pt", input_shape=(1, 3, 12, 12))
        assert again.format == "module"
        assert len(conversion.report.provenance.sha256) == 64
        fused = dacconv.fuse(model).module
        assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())

    def test_a_broken_result_warns(self) -> None:
        before = net().eval()
        with torch.no_grad():
            before[8].weight.mul_(1e3)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dacconv.convert(before, X, rank=1, samples=4)
        texts = [str(each.message) for each in caught]
        assert any("every BatchNorm was merged" in text and "fuse=False" in text for text in texts)

    def test_what_is_no_module(self) -> None:
        with pytest.raises(TypeError, match="a path or a torch module, not int"):
            dacconv.load(3)  # type: ignore[arg-type]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            traced = torch.jit.trace(net().eval(), X)
        with pytest.raises(FormatError, match="scripted"):
            dacconv.load(traced)
        model = dacconv.load(net().eval(), input_shape=(1, 3, 12, 12))
        with pytest.raises(TypeError, match="takes a plan, not int"):
            dacconv.convert(model, 3)  # type: ignore[call-overload]

    def test_onnx_has_no_module(self, assets) -> None:
        model = dacconv.load(assets / "fashion.onnx")
        with pytest.raises(UnsupportedError, match="no torch module"):
            _ = dacconv.fuse(model).module


def test_load_is_typed() -> None:
    parameters = inspect.signature(dacconv.load).parameters
    assert not [p for p in parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
    assert {"input_shape", "arch", "key", "trust_pickle"} <= set(parameters)
    with pytest.raises(TypeError, match="unexpected keyword argument 'input_shpae'"):
        dacconv.load("x", input_shpae=(1, 3))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("give --last-k 4", "give last_k 4"),
        ("--no-fuse keeps them", "fuse=False keeps them"),
        ("--rank R, --ranks NAME=R", "rank R, ranks NAME=R"),
        ("--eval FILE.py", "task FILE.py"),
        ("--arch-arg depth=3", "arch_args depth=3"),
        ("python -m pip --upgrade", "python -m pip --upgrade"),
        ("a layer--rank", "a layerrank"),
    ],
)
def test_options_become_keywords(text: str, words: str) -> None:
    assert keywords(text) == words


def test_errors_name_keywords() -> None:
    model = dacconv.load(net().eval(), input_shape=(1, 3, 12, 12))
    with pytest.raises(UsageError) as caught:
        dacconv.plan(model)
    assert "--" not in str(caught.value)
    assert "rank R, ranks NAME=R" in str(caught.value)
    with pytest.raises(UsageError) as caught:
        dacconv.plan(model, rank=1, method="dak")
    assert str(caught.value).startswith("method: unknown method 'dak'")


class TestReports:
    def test_rows_are_records(self) -> None:
        model = dacconv.load(net().eval(), input_shape=(1, 3, 12, 12))
        report = dacconv.convert(model, dacconv.plan(model, rank=2)).report
        rows = report.records()
        assert [row["name"] for row in rows] == ["0", "3", "8"]
        assert sum(row["macs_after"] for row in rows) == report.after.macs
        assert {type(value) for row in rows for value in row.values()} <= {
            str, int, float, bool, type(None)}  # fmt: skip
        assert np.isclose(rows[1]["energy_kept"], 1 - rows[1]["kernel_error"] ** 2)

    def test_notebooks_show_a_table(self) -> None:
        torch.manual_seed(0)
        named = nn.Sequential()
        named.add_module("<b>x", nn.Conv2d(3, 16, 3))
        model = dacconv.load(named.eval(), input_shape=(1, 3, 12, 12))
        text = dacconv.convert(model, dacconv.plan(model, rank=2)).report._repr_html_()
        assert text.count("<tr>") == 2
        assert "&lt;b&gt;x" in text
        assert "of the MACs saved" in text


def test_the_recipe_of_fine_tuning_learns() -> None:
    before = net().eval()
    after = dacconv.convert(before, X, rank=2, fuse=False, verify=False).train()
    images = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        targets = before(images)
    optimiser = torch.optim.SGD(after.parameters(), lr=1e-2, momentum=0.9)
    losses = []
    for _ in range(10):
        loss = nn.functional.mse_loss(after(images), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert all(np.isfinite(losses))
    assert losses[-1] < losses[0]
