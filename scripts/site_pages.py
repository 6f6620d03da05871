"""Pages of the documentation's site that are made from other files; a hook of mkdocs.

The first page of the site is the README, and SECURITY.md is another. ``docs/options.md`` is in the
repository, so that it can be read there; this writes it:

    python scripts/site_pages.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dacconv.settings import COMMANDS, SWITCH, option_text

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ROOT / "docs/options.md"
INTRODUCTION = """\
# Options

The options of every command, as `--help` prints them. Defaults are in brackets. This page is
generated from the declarations in `dacconv/settings.py`.

The options that decide what a conversion does are also keys of a TOML file, without the dashes in
front (`last-k = 3`), and keyword arguments of the [Python API](api.md), with underscores
(`last_k=3`).
"""


def options_table(command: str) -> str:
    """The options of a command as a Markdown table, for the documentation."""
    lines = ["| option | meaning |", "| --- | --- |"]
    for group in COMMANDS[command]:
        for each, declaration in group.declared(command):
            typed = option_text(each.name)
            both = (typed, f"--no-{typed[2:]}") if declaration.kind == SWITCH else (typed,)
            names = ", ".join(declaration.names or both)
            metavar = f" {declaration.metavar}" if declaration.metavar else ""
            words = declaration.words.get(command, declaration.help)
            cells = (f"`{names}{metavar}`", words)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def options_page() -> str:
    """The text of ``docs/options.md``: a table of options for every command."""
    sections = [f"## {name}\n\n{options_table(name)}" for name in COMMANDS]
    return "\n".join([INTRODUCTION, *sections])


def root_page(name: str) -> str:
    """A page of the repository's root with links that are relative to the folder ``docs``."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from the repository's root."""
    from mkdocs.structure.files import File

    for page, source in (("index.md", "README.md"), ("SECURITY.md", "SECURITY.md")):
        files.append(File.generated(config, page, content=root_page(source)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to the pages from the repository's root, which the site has beside the others."""
    return markdown.replace("](../SECURITY.md", "](SECURITY.md")


def on_page_content(html: str, **_: Any) -> str:
    """Remove the backslash before a bar in code, which GitHub needs in tables."""
    return re.sub(r"<code>[^<]*</code>", lambda code: code[0].replace("\\|", "|"), html)


if __name__ == "__main__":
    OPTIONS.write_text(options_page(), encoding="utf-8")
