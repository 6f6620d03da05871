"""Progress of long work, reported through a callback."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A callback that long work calls after each step."""

    def __call__(self, task: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` steps of ``task`` are finished."""
        ...


def silent(task: str, done: int, total: int) -> None:
    """A progress callback that does nothing."""
