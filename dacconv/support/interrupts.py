"""Ctrl-C reaches every process of a terminal; only the one that the user started answers it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def processes_ignore_interrupts() -> Iterator[None]:
    """Processes and threads that start in the block never get Ctrl-C; they inherit the mask.

    A Ctrl-C that comes meanwhile is delivered to this process when the block ends.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
