"""The command ``diff``: two reports side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dacconv.cli.commands import command
from dacconv.safe_text import safe_line


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "diff")
    def diff(
        first: Annotated[Path, typer.Argument(metavar="A.json")],
        second: Annotated[Path, typer.Argument(metavar="B.json")],
    ) -> None:
        """Print two reports of --json side by side: totals, and the layers that differ."""
        from dacconv.reports.diff_words import layers, read_report, whole
        from dacconv.reports.words import aligned

        reports = read_report(first), read_report(second)
        head = ("", first.name, second.name)
        for line in aligned([head, *whole(*reports)], 3):
            typer.echo(safe_line(line))
        rows = layers(*reports)
        typer.echo()
        if not rows:
            typer.echo("every layer is treated alike")
            return
        for line in aligned([("layer", first.name, second.name), *rows], 3):
            typer.echo(safe_line(line))
