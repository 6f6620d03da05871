import pytest

from dacconv.conversion.gates import Gates, missed
from dacconv.conversion.report import Report, Row
from dacconv.errors import UsageError
from dacconv.graph.cost import Cost
from dacconv.graph.findings import Latency, Verification
from dacconv.graph.types import Geometry
from dacconv.support.parsing import parse_share

GEOMETRY = Geometry(1, 1, (3, 3), (1, 1), (1, 1), 1, False, None, None)
LATENCY = Latency(1.0, 1.0, 1.0, 1.0, 1.0, 1, 1)


def report(macs, error=None, agreement=None):
    row = Row(
        "a",
        "conv",
        GEOMETRY,
        1,
        True,
        None,
        "dac",
        1,
        1,
        0.0,
        1.0,
        Cost(100, 1, 1),
        Cost(macs, 1, 1),
    )
    check = Verification(error, agreement, (), LATENCY, 1, 0, "r", ())
    return Report("onnx", (row,), (), (), (), "execution", verification=check)


def test_kept_gates():
    assert missed(report(60, 0.1, 0.99), Gates(0.1, 0.4, 0.99)) == []
    assert missed(report(60), Gates()) == []


def test_missed_gates():
    assert len(missed(report(61, 0.11, 0.98), Gates(0.1, 0.4, 0.99))) == 3


def test_what_is_unknown_is_missed():
    assert len(missed(report(None), Gates(0.1, 0.4, 0.99))) == 3


def test_shares():
    assert parse_share("40%", "x") == parse_share("0.4", "x") == parse_share("40 %", "x")
    for text in ("-1", "40", "nan", "x", "101%"):
        with pytest.raises(UsageError):
            parse_share(text, "x")
