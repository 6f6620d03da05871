"""The verdict follows from the verification by the limits that docs/report.md states."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dacconv.conversion.comparison import Comparison, worst
from dacconv.conversion.gates import Gates, missed
from dacconv.conversion.verdict import speed_change, verdict_on
from dacconv.conversion.verification import _latency
from dacconv.graph.findings import Latency, OutputCheck, Verification
from tests.conversion.test_gates import report

LATENCY = Latency(1.0, 1.0, 1.0, 1.0, 1.0, 10, 1)
DATA = "images of x.npz"


def check(error=0.5, same=None, chance=0.2, samples=64, kind="drawn images", **more):
    output = OutputCheck("y", (1, 10), "float32", True, error, error, same, chance=chance)
    output = replace(output, **more.pop("output", {}))
    return Verification(
        worst([output.relative_error]), output.agreement, (output,), LATENCY, samples, 0, "r", (),
        kind=kind, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "level"),
    [
        (check(0.0, 1.0), "equal"),
        (check(1e-4, 1.0), "equal"),
        (check(2e-2, None, output={"dtype": "float16"}), "equal"),
        (check(2e-2, None), "usable"),
        (check(0.3, 0.80), "usable"),
        (check(0.3, 0.79), "degraded"),
        (check(0.1, None), "usable"),
        (check(0.11, None), "degraded"),
        (check(0.11, 1.0, chance=None), "degraded"),  # one class for nearly all inputs
        (check(0.3, 0.95, kind=DATA), "usable"),
        (check(0.3, 0.94, kind=DATA), "degraded"),
        (check(0.3, 0.5, kind=DATA, top1=(0.9, 0.89)), "usable"),
        (check(0.3, 0.97, kind=DATA, top1=(0.9, 0.87)), "degraded"),
        (check(1.0, None), "degraded"),
        (check(1.01, None), "broken"),
        (check(0.5, 0.20), "broken"),
        (check(0.5, 0.24), "broken"),
        (check(0.5, 0.26), "degraded"),
        (check(0.5, 0.24, samples=8), "degraded"),
        (check(0.5, 0.20, samples=8), "broken"),
        (check(0.3, 0.5, chance=None), "degraded"),
        (check(1.2, 1.0, kind=DATA, top1=(0.9, 0.9)), "broken"),
        (check(None, 0.0, output={"max_abs_error": None}), "broken"),  # NaN where there was none
        (check(None, None, output={"matches": False}), "broken"),
        (check(None, None, output={"not_finite": 8, "max_abs_error": None}), "unknown"),
        (check(None, None, output={"dtype": "object", "max_abs_error": None}), "unknown"),
        (check(None, None, output={"max_abs_error": 1.0}), "unknown"),  # the original is zero
        (None, "unknown"),
    ],
)
def test_levels(found, level):
    verdict = verdict_on(found, "nobody asked")
    assert verdict.level == level
    assert verdict.reason
    broken = missed(replace(report(50), verification=found), Gates())
    assert broken == ([f"the converted network is broken: {verdict.reason}"]
                      if level == "broken" else [])  # fmt: skip


def test_the_reason_has_the_numbers():
    assert verdict_on(check(0.3, 0.9)).reason == (
        "90.0 % of 64 drawn images keep their top class, relative error 0.3"
    )
    assert "top-1 90.0 % before, 88.0 % after" in verdict_on(check(top1=(0.9, 0.88))).reason
    assert "20.0 % would by chance" in verdict_on(check(0.5, 0.1)).reason
    assert verdict_on(None, "weights alone cannot be run").reason == (
        "not verified: weights alone cannot be run"
    )


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=50))
def test_chance_is_that_of_independent_models_with_the_same_classes(pairs):
    comparison = Comparison()
    for expected, actual in pairs:
        comparison.add(*({"y": np.eye(4, dtype=np.float32)[[k]]} for k in (expected, actual)))
    (output,) = comparison.outputs()
    columns = [np.bincount(column, minlength=4) / len(pairs) for column in zip(*pairs, strict=True)]
    if columns[0].max() > 0.9:
        assert output.chance is None
    else:
        assert output.chance == pytest.approx(columns[0] @ columns[1])


def latency(ratios):
    return _latency([(ratio, 1.0) for ratio in ratios], 1)


def test_a_speed_is_claimed_only_outside_the_interval():
    assert speed_change(latency([1.5] * 20)) == 1.5
    assert speed_change(latency([0.8] * 20)) == 0.8
    assert speed_change(latency([1.02] * 20)) is None
    assert speed_change(latency([0.5, 2.5] * 10)) is None
    assert latency([1.5] * 5).interval is None
    assert speed_change(latency([1.5, 0.9, 1.6, 0.8, 1.5])) is None


@pytest.mark.parametrize("count", [6, 10, 17, 64])
def test_the_interval_is_that_of_order_statistics(count):
    from dacconv.timing.intervals import median_interval

    ratios = np.random.default_rng(count).lognormal(size=count).tolist()
    expected, found = median_interval(ratios), latency(ratios).interval
    middle = latency(ratios).speedup
    assert found == (min(expected.low, middle), max(expected.high, middle))
    assert not math.isnan(middle)
