"""``dacconv diff``: two reports side by side."""

from __future__ import annotations

import json


def test_two_reports_side_by_side(run, work):
    run("convert", "net.onnx", "--rank", 2, "--last-k", 2, "--json", "a.json", "-o", "a.onnx")
    run("convert", "net.onnx", "--rank", 3, "--last-k", 1, "--json", "b.json", "-o", "b.onnx")
    done = run("diff", "a.json", "b.json")
    assert done.code == 0
    head, *lines = done.out.splitlines()
    assert head.split() == ["a.json", "b.json"]
    table = {line.split("  ")[0]: line for line in lines}
    assert "rank 2, last_k 2" in table["options"]
    assert "rank 3, last_k 1" in table["options"]
    assert {"verdict", "MACs", "parameters", "relative error", "times as fast"} <= set(table)
    assert "dac 2" in table["conv2"]
    assert table["conv2"].endswith("whole")
    same = run("diff", "a.json", "a.json")
    assert "every layer is treated alike" in same.out


def test_what_is_no_report(run, work):
    (work / "a.json").write_text("[1]")
    (work / "b.json").write_text("{")
    assert (run("diff", "a.json", "a.json").code, run("diff", "b.json", "b.json").code) == (3, 2)
    assert run("diff", "gone.json", "a.json").code == 2


def test_values_of_other_kinds_do_no_harm(run, work):
    hostile = {
        "schema_version": 1,
        "layers": [1, {"name": "\u001b[31mx", "rank": [1, {}], "kernel_error": "x"}],
        "verification": [], "totals": {"macs": 3}, "provenance": {"options": 3, "source": []},
    }  # fmt: skip
    (work / "a.json").write_text(json.dumps(hostile))
    (work / "b.json").write_text(json.dumps({"schema_version": 1, "layers": {}}))
    done = run("diff", "a.json", "b.json")
    assert done.code == 0
    assert "\x1b" not in done.out
