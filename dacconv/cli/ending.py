"""How the program ends: one message and the exit code, whatever went wrong, and no traceback."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import typer
from typer.exceptions import Abort, TyperException

from dacconv.cli import INTERRUPTED, end_of_imports
from dacconv.errors import describe
from dacconv.safe_text import safe_lines
from dacconv.support.files import remove_unfinished
from dacconv.support.interrupts import stop_processes

_STREAM_ERRORS = (errno.EPIPE, errno.ENOSPC, errno.EBADF, errno.EIO)
_interrupted = False


def run_to_the_end(command: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit with its code; errors become one message each.

    Ctrl-C ends it with 130. An error that follows Ctrl-C, from a library that was interrupted
    halfway, counts as the interruption. Standard output that cannot be written to is an error
    with exit code 3.
    """
    global _interrupted
    _interrupted = False
    _prepare_streams()
    _watch_interrupts()
    try:
        code = command() or 0
        sys.stdout.flush()
    except TyperException as error:
        # a mistyped option or command: typer says what it should be, and how to get help
        show = getattr(error, "show", None)
        show() if show else _complain(error.format_message())
        code = error.exit_code
    except (Abort, KeyboardInterrupt):
        _leave_interrupted()
    except SystemExit as stop:
        if not isinstance(stop.__context__, OSError):
            raise
        message, code = _describe(stop.__context__)  # typer ends with 1 where a pipe is broken
        _complain(message)
    except Exception as error:
        if _interrupted:
            _leave_interrupted()
        message, code = _describe(error)
        _complain(message)
    _drop_unwritten()
    sys.exit(code)


def _describe(error: Exception) -> tuple[str, int]:
    """The message and exit code of an error that reached the top."""
    if isinstance(error, OSError) and error.errno in _STREAM_ERRORS and error.filename is None:
        reason = f"cannot write to standard output: {error.strerror}"
        return f"{reason}\n  files that were written before are complete", 3
    return describe(error)


def _complain(message: str) -> None:
    """A message on stderr, where it can be written to."""
    with suppress(OSError, ValueError):
        typer.echo(safe_lines(f"dacconv: {message}"), err=True)


def _prepare_streams() -> None:
    """Open what the caller closed, so that no file of ours takes its number, and set the errors.

    What an encoding cannot say is written as an escape: names of files need not be UTF-8.
    """
    if sys.stdout is None:
        _complain("standard output is closed\n  redirect it to a file or to /dev/null")
        sys.exit(2)
    for number in (0, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_unwritten() -> None:
    """Flush stdout; where that fails, keep Python from trying again and complaining at its end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _watch_interrupts() -> None:
    """Note Ctrl-C before it is raised, so that what it causes is known to come of it."""
    with suppress(ValueError):  # not the main thread
        end_of_imports()
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            return

        def handle(number: int, frame: FrameType | None) -> NoReturn:
            global _interrupted
            _interrupted = True
            stop_processes()  # joblib would wait for what they are doing
            if _is_importing(frame):  # extension modules abort where an exception comes in between
                remove_unfinished()
                _leave_interrupted()
            sys.unraisablehook = lambda unraisable: None  # it may land in a destructor
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, handle)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported in one of the frames."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _leave_interrupted() -> NoReturn:
    """Stop the processes that work for this one, and end with the code of an interruption."""
    with suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    _complain("interrupted")
    warnings.simplefilter("ignore")
    stop_processes()
    if _interrupted:  # threads and libraries need no more time, and shall say nothing more
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(INTERRUPTED)
    sys.exit(INTERRUPTED)
