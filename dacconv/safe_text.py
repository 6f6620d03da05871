"""Text that comes from files, made safe to show.

Names of layers, inputs and outputs, and metadata, come from files that anybody may have made.
They are kept as they are, and pass through these functions where text is written: characters
that cannot be seen become escapes, and no name can look like a line of ours.
"""

from __future__ import annotations

import re
from typing import Any, Final

FORMULA: Final = ("=", "+", "-", "@")
"""What spreadsheets take for the beginning of a formula."""


def visible(text: str) -> str:
    """The text on one line, with an escape in the place of everything that cannot be seen.

    Control characters, line breaks, bidirectional marks, zero-width characters and lone
    surrogates become the escapes that JSON has for them, such as ``\\u001b``: inside JSON the
    value stays the same. The old mark of a GitHub workflow command, which counts anywhere in a
    line, is broken up in the same way. Text that is safe already comes back unchanged.
    """
    if not text.isprintable():
        text = "".join(char if char.isprintable() else _escape(char) for char in text)
    return text.replace("##[", "#\\u0023[")


def visible_lines(text: str) -> str:
    """Text of several lines, each of them made visible; the line breaks stay."""
    return "\n".join(map(visible, text.split("\n")))


def safe_line(text: str) -> str:
    """One line of output, which no GitHub runner takes for a workflow command (``::error::``)."""
    text = visible(text)
    start = len(text) - len(text.lstrip())
    return f"{text[:start]}\\u003a{text[start + 1 :]}" if text[start:].startswith("::") else text


def safe_lines(text: str) -> str:
    """Output of several lines, each of them safe; the line breaks stay."""
    return "\n".join(map(safe_line, text.split("\n")))


def json_text(data: Any, indent: int = 2) -> str:
    """Data as JSON text that ends in a newline; without NaN and Infinity, which JSON lacks.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    import json

    text = json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False)
    return visible_lines(text) + "\n"


def markdown_text(text: str) -> str:
    """Text as Markdown that shows it as it is: no markup, no link and no new cell or line."""
    text = visible(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)|^[#>]|^[+-](?=\s)", r"\\\g<0>", text)


def csv_text(text: str) -> str:
    """Text as a CSV cell that no spreadsheet computes; :func:`from_csv_text` reads it.

    A formula gets an apostrophe in front; text with invisible characters, or that begins with
    a quotation mark, becomes a JSON string.
    """
    if text.startswith('"') or visible(text) != text:
        import json

        return visible(json.dumps(text, ensure_ascii=False))
    return f"'{text}" if text.lstrip("'").startswith(FORMULA) else text


def from_csv_text(cell: str) -> str:
    """The text that :func:`csv_text` made a cell of."""
    if cell.startswith('"'):
        import json

        try:
            return str(json.loads(cell))
        except ValueError:
            return cell  # written before such texts were JSON strings
    formula = cell.startswith("'") and cell.lstrip("'").startswith(FORMULA)
    return cell[1:] if formula else cell


def _escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
