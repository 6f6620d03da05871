"""The script that fits the constants of the price model."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import fit_prices
import numpy as np
import pytest
from fit_prices import NAMES, SINGLE, SPLIT, START, fitted, geometry, other_chains, read, report

from dacconv.decompositions import costs
from dacconv.decompositions.costs import Work
from dacconv.graph.cost import layer_cost, total
from dacconv.graph.types import Choice
from dacconv.timing.prices import PRICES, Prices

RATES = replace(PRICES["torch"].rates, memory_scaling=0.4)


def rows_of_the_model(path, runtime: str = "torch", aside: float = 0.0) -> list[dict]:
    """Rows of times as the model has them, with the rates ``RATES``, and read again."""
    singles = [geometry(*sizes) for sizes in sum(SINGLE.values(), ())]
    works = [("original", layer, Work((layer,))) for layer in singles]
    for layer in (geometry(*sizes) for sizes in SPLIT[:12]):
        works += [(name, layer, Work(tuple(chain))) for name, chain in other_chains(layer)]
        works += [
            (f"dac {form} 3", layer, costs.work(layer, Choice("", "dac", (3,), form=form)))
            for form in ("multiplier", "sum", "repeat", "concat")
        ]
    prices = Prices(PRICES[runtime].kernels, RATES)
    lines = [
        json.dumps({
            "kind": "dense", "runtime": runtime, "threads": threads, "layer": asdict(layer),
            "case": case, "work": asdict(work), "aside": aside,
            "seconds": prices.seconds(work, threads),
        })
        for case, layer, work in works
        for threads in (1, 2)
    ]  # fmt: skip
    path.write_text("\n".join(lines))
    return read(path, runtime)


def test_the_rates_of_times_without_noise_are_found_again(tmp_path) -> None:
    data = rows_of_the_model(tmp_path / "times.jsonl")
    rates = fitted(data, "torch", NAMES, START)
    predicted = [fit_prices.seconds(row, "torch", rates) for row in data]
    ratios = np.array(predicted) / [row["seconds"] for row in data]
    assert np.quantile(np.abs(np.log(ratios)), 0.9) < 0.05
    assert rates.direct == pytest.approx(RATES.direct, rel=0.05)
    assert rates.compute_scaling == pytest.approx(RATES.compute_scaling, rel=0.1)


def test_only_free_rates_are_fitted(tmp_path) -> None:
    data = rows_of_the_model(tmp_path / "times.jsonl")[:40]
    rates = fitted(data, "torch", ("copied", "operator"), RATES)
    assert replace(rates, copied=RATES.copied, operator=RATES.operator) == RATES


def test_times_within_the_error_of_what_was_taken_off_are_left_out(tmp_path) -> None:
    assert not rows_of_the_model(tmp_path / "times.jsonl", aside=100.0)


def test_the_report_has_errors_and_losses(tmp_path, capsys) -> None:
    data = rows_of_the_model(tmp_path / "times.jsonl")
    for row in data:
        row["predicted"] = 1.1 * row["seconds"]
    report(data)
    out = capsys.readouterr().out
    assert f"| all | {len(data)} | 10 % | 10 % |" in out
    assert "lost by the form that is predicted to be the fastest: 0.0 %" in out
    assert "lost by the form multiplier throughout" in out


def test_other_methods_are_measured_at_their_shares() -> None:
    layer = geometry(64, 64, 28)
    macs = layer_cost(layer).macs
    shares = [total(map(layer_cost, chain)).macs / macs for _, chain in other_chains(layer)]
    assert shares == pytest.approx([0.3] * 3 + [0.6] * 3, rel=0.05)
