"""Text from files, as it is shown: nothing invisible, no forged line, no formula, no markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dacconv.errors import UsageError
from dacconv.reports import EXPORTERS
from dacconv.reports.words import aligned
from dacconv.safe_text import (
    csv_text,
    from_csv_text,
    json_text,
    markdown_text,
    safe_line,
    visible,
    visible_lines,
)
from tests.reports.test_exporters import report

HIDDEN = "\x00\x07\t\n\r\x1b\x7f\x85\x9b\u200b\u202e\u2028\u2066\ufeff\udcff\U000e0041"
ANY = st.text(st.characters() | st.sampled_from(HIDDEN + "=+-@'\"|:#[]`<&\\\\"))


@given(ANY)
@example(HIDDEN)
def test_what_is_visible_has_no_hidden_character_and_stays_as_it_is(text):
    shown = visible(text)
    assert shown.isprintable()
    assert "##[" not in shown
    assert visible(shown) == shown
    shown.encode()


@given(st.text(st.characters(categories=("L", "N", "P", "S"))))
def test_plain_text_is_shown_as_it_is(text):
    assert visible(text) == text.replace("##[", "#\\u0023[")


@pytest.mark.parametrize("char", HIDDEN)
def test_every_kind_of_hidden_character_becomes_the_escape_of_json(char):
    assert json.loads(f'"{visible(char)}"') == char


@given(ANY)
@example("  ::error::x")
@example("a\n::set-output name=x::y")
@example("##[error]x")
def test_no_line_is_a_workflow_command(text):
    line = safe_line(text)
    assert len(line.splitlines()) <= 1
    assert not line.lstrip().startswith("::")
    assert "##[" not in line


@given(st.lists(ANY))
def test_lines_of_ours_stay_lines(lines):
    shown = visible_lines("\n".join(visible(line) for line in lines))
    assert shown.count("\n") == max(len(lines) - 1, 0)


@given(ANY)
@example("=1+1")
@example("'=1+1")
@example("''")
@example('"a"')
def test_a_csv_cell_is_no_formula_and_gives_back_its_text(text):
    cell = csv_text(text)
    assert not cell.startswith(("=", "+", "-", "@"))
    assert cell.isprintable()
    assert from_csv_text(cell) == text


@given(ANY)
def test_json_keeps_the_value(text):
    written = json_text({"name": text})
    assert json.loads(written) == {"name": text}
    assert all(line.isprintable() for line in written.splitlines())


@given(ANY)
def test_markdown_has_no_live_markup(text):
    shown = markdown_text(text)
    assert shown.isprintable()
    assert "<" not in shown
    unescaped = re.sub(r"\\.", "", shown)
    assert not set(unescaped) & set("`*[]|~\\\\")


@pytest.mark.parametrize("char", HIDDEN)
@pytest.mark.parametrize("name", sorted(EXPORTERS))
def test_reports_show_names_safely(name, char):
    evil = f"a{char}::error::x|<img src=x>"
    made = report()
    rows = (replace(made.rows[0], name=evil), *made.rows[1:])
    text = EXPORTERS[name](replace(made, rows=rows, notes=(evil,), missed=(evil,)))
    assert all(line.isprintable() for line in text.split("\n"))
    assert not any(line.lstrip().startswith("::") for line in text.split("\n"))
    shown = json.dumps(char)[1:-1] if name == "json" and char in "\t\n\r" else visible(char)
    assert shown in text.replace("\\\\", "\\")
    assert name == "json" or "<img" not in text


@given(ANY, ANY)
def test_tables_and_errors_have_the_lines_that_we_gave_them(name, other):
    (line,) = aligned([(name, other)], 1)
    assert line.isprintable()
    message = str(UsageError(name, where=other, hint="a hint"))
    assert len(message.split("\n")) == 2
