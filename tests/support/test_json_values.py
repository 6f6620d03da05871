import json

import pytest

from dacconv.errors import UsageError
from dacconv.support.json_values import is_count, is_number, is_text, read_json, shown


@pytest.mark.parametrize(
    "text",
    ["", "{", "NaN", "[Infinity]", '{"a": -Infinity}', "[" * 100_000, '{"a": ' * 50_000,
     '{"a": 1, "a": 2}', '[{"b": {"a": 1, "a": 1}}]', "9" * 10_000, "\0", "{'a': 1}"],
)  # fmt: skip
def test_what_is_not_json_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(UsageError, match=r"^p.json: not JSON"):
        read_json(text, "p.json")


def test_what_is_json_is_read() -> None:
    value = {"a": [1, 2.5, None, True, "x"], "b": {"a": {}}}
    assert read_json(json.dumps(value), "p.json") == value


def test_kinds() -> None:
    assert [is_text(v) for v in ("", "ü", "\ud800", 1, None)] == [True, True, False, False, False]
    numbers = (0, -1.5, True, float("nan"), float("inf"), 10**400, "1", None, [])
    assert [is_number(v) for v in numbers] == [True, True, *[False] * 7]
    counts = (0, 5, -1, True, 1.0, 1 << 63, "1", None)
    assert [is_count(v) for v in counts] == [True, True, *[False] * 6]
    assert len(shown("x" * 5000)) <= 60
    assert shown({1, 2}).startswith('"{1')
