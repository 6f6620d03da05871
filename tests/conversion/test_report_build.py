"""Rows of a report for layers of which little is known."""

from __future__ import annotations

from dacconv.jobs.convert import convert_file, inspect_file
from dacconv.settings import Settings
from tests.onnx_nets import model, node, save, weights


def test_a_layer_whose_weight_has_no_known_size(tmp_path):
    """Its weight is an input of the model without a shape: it has no geometry at all."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="first", pads=[1] * 4),
        node("Conv", ["a", "v"], ["y"], name="second"),
    ]
    proto = model(nodes, {"w": weights(6, 4, 3, 3)}, inputs={"x": (1, 4, 9, 8), "v": None})
    path = save(proto, tmp_path)
    rows = {row.name: row for row in inspect_file(path, Settings()).rows}
    assert rows["first"].full_rank == (6,)
    assert (rows["second"].geometry, rows["second"].full_rank) == (None, None)
    assert not rows["second"].eligible
    report = convert_file(path, Settings(rank=1, verify=False)).report
    assert [row.rank for row in report.rows] == [(1,), None]
