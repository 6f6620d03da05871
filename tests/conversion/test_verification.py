import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dacconv.conversion.comparison import Comparison, agreement
from dacconv.conversion.gates import Gates, missed
from dacconv.conversion.report import Report
from dacconv.conversion.verification import CheckOptions, verify
from dacconv.graph.types import ValueSpec
from dacconv.reports import words


class Net:
    """A model of one function; ``noise`` is added to its outputs."""

    path, runtime, runnable = "net", "numpy", None

    def __init__(self, function, noise=0.0):
        self.function, self.noise = function, noise

    def inputs(self):
        return (ValueSpec("x", (1, 4)),)

    def runner(self, *, threads=None):
        return lambda feeds: {"y": (self.function(feeds["x"]) + self.noise).astype(np.float32)}


def check(function, noise=0.0):
    with np.errstate(all="ignore"):
        return verify(Net(function), Net(function, noise), CheckOptions(samples=4))


def report(verification):
    return Report("onnx", (), (), (), (), "execution", verification=verification)


def test_finite_outputs_are_compared_on_normal_inputs():
    result = check(lambda x: x)
    assert (result.family, result.relative_error, result.agreement) == ("standard normal", 0, 1)
    assert result.not_finite == ()


@pytest.mark.parametrize(
    ("function", "family"),
    [
        (np.sqrt, "uniform in 0..1"),
        (lambda x: np.sqrt(0.1 - np.abs(x)), "uniform in 0..0.1"),
        (lambda x: np.where((x >= 0) & (x < 0.01), x, np.inf), "uniform in 0..0.01"),
    ],
)
def test_another_family_is_taken_where_normal_inputs_give_no_finite_outputs(function, family):
    result = check(function)
    assert result.family == family
    assert result.relative_error == 0
    assert result.agreement == 1
    assert f", {family} through" in words.verification(result)[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_never_finite_is_not_compared_and_misses_the_gates(value):
    result = check(lambda x: np.full_like(x, value))
    assert result.relative_error is None
    assert result.agreement is None
    assert result.not_finite == ("y",)
    assert "NaN or infinite" in words.verification(result)[1]
    assert "no input of the model looks like an image" in words.verification(result)[2]
    for gates in (Gates(max_error=1e9), Gates(min_agreement=0.0)):
        assert "NaN or infinite" in missed(report(result), gates)[0]


def test_a_converted_model_that_alone_gives_nan_is_not_excused():
    result = check(lambda x: x, np.nan)
    assert (result.family, result.relative_error, result.agreement) == ("standard normal", None, 0)


def compare(expected, actual):
    comparison = Comparison()
    comparison.add({"y": expected}, {"y": actual})
    return comparison.outputs()


def test_masked_scores_keep_their_top_class():
    scores = np.array([[1.0, -np.inf], [-np.inf, 2.0]], np.float32)
    assert agreement(compare(scores, scores)) == 1


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_agreement_counts_only_samples_whose_scores_are_numbers(finite, data):
    scores = np.array([[0, 1] if good else [0, np.nan] for good in finite], np.float32)
    same = [data.draw(st.booleans()) for _ in finite]
    other = np.array([[0, 1] if equal else [1, 0] for equal in same], np.float32)
    (output,) = compare(scores, other)
    comparable = [equal for equal, good in zip(same, finite, strict=True) if good]
    assert output.agreement == (sum(comparable) / len(comparable) if comparable else None)
    assert output.not_finite == (not all(finite))


def test_a_second_output_does_not_hide_one_that_was_nan():
    comparison = Comparison()
    good, bad = np.eye(2, dtype=np.float32), np.full((2, 2), np.nan, np.float32)
    comparison.add({"a": good, "b": bad}, {"a": good, "b": bad})
    assert agreement(comparison.outputs()) is None
