"""Ctrl-C for programs with worker processes: only the process that the user started handles it."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any


def keep_interrupts_from_processes() -> None:
    """Block SIGINT in every process that joblib starts from now on.

    The processes inherit a signal mask. joblib has no option for that, and its helper processes
    reset the mask of the thread, so the mask is set around every start.
    """
    if hasattr(signal, "pthread_sigmask"):
        with suppress(ImportError):
            from joblib.externals.loky.backend import fork_exec

            if not hasattr(fork_exec.fork_exec, "without_interrupts"):
                fork_exec.fork_exec = _Launch(fork_exec.fork_exec)


def stop_processes() -> None:
    """Kill every process that joblib started for this one."""
    while _workers:
        with suppress(OSError):
            os.kill(_workers.pop(), signal.SIGTERM if os.name == "nt" else signal.SIGKILL)


_workers: list[int] = []


class _Launch:
    """A function that starts a process, called with Ctrl-C blocked."""

    without_interrupts = True

    def __init__(self, start: Any) -> None:
        self._start = start

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process = self._start(*arguments, **more)
            if any("popen_loky" in str(part) for part in arguments[0]):
                _workers.append(process)
            return process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
