from __future__ import annotations

import math

import pytest

from dacconv.support.numbers import three_digits


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (12.34, "12.3"), (999.4, "999"), (1180.4, "1,180"),
     (-1180.4, "-1,180"), (123456, "123,000"), (2.43e-7, "2.43e-07"), (1e20, "1e+20"),
     (math.inf, "inf"), (math.nan, "nan")],
)  # fmt: skip
def test_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text
