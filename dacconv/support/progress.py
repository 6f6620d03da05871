"""How long work tells that it goes on: a callback that the pure core knows nothing more of."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with what is being done, how much of it is done, and how much there is."""

    def __call__(self, task: str, done: int, total: int) -> None:
        """Tell that ``done`` of ``total`` steps of ``task`` are done."""
        ...


def silent(task: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""
