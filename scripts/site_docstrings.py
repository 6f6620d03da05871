"""Docstrings as Markdown, for the reference of the Python API; an extension of griffe.

The docstrings refer to names by Sphinx roles and have doctests outside any section.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|data|attr|mod):`~?(?:[\w.]*\.)?(\w+)`")
DOCTEST = re.compile(r"^(?:>>> .*\n?(?:\.\.\. .*\n?)*)+", re.MULTILINE)


def as_markdown(docstring: str) -> str:
    """The docstring with roles as code, and doctests as blocks of code."""
    text = ROLE.sub(r"`\1`", docstring)
    return DOCTEST.sub(lambda block: f"```python\n{block[0].rstrip()}\n```\n", text)


class MarkdownDocstrings(griffe.Extension):
    """Rewrites the docstring of every object when it is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
