"""The errors that a user sees: what is wrong, where, and what to do about it."""

from __future__ import annotations

import os

from dacconv.safe_text import visible, visible_lines


class DacconvError(Exception):
    """Bad input, described in one message.

    The only exception type that the command line catches; anything else is a bug.

    Args:
        what: the fault, in one sentence without a full stop.
        where: the file, layer or option that it was found in.
        hint: what the user can do about it.
    """

    exit_code = 3

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(what)

    def __str__(self) -> str:
        what, where = visible(self.what), visible(self.where)
        message = f"{where}: {what}" if where else what
        return f"{message}\n  {visible_lines(self.hint)}" if self.hint else message


def describe(error: Exception) -> tuple[str, int]:
    """An error as a message to the user, and its exit code.

    Anything but a DacconvError, a lack of memory and a refusal of the system is a bug.
    """
    if isinstance(error, DacconvError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError):
        return "out of memory", 3
    if isinstance(error, RecursionError):
        return "the input is nested too deeply", 3
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
        return (f"{name}: {reason}" if name else f"the system refused: {reason}"), 3
    message = (
        f"this is a bug in dacconv, not in your input: {type(error).__name__}: {error}"
        "\n  please report it; DACCONV_DEBUG=1 shows where it happened"
    )
    if os.environ.get("DACCONV_DEBUG"):
        import traceback

        message += "\n" + "".join(traceback.format_exception(error))
    return message, 3


class UsageError(DacconvError):
    """The options contradict each other, the model, or their own rules."""

    exit_code = 2


class FormatError(DacconvError):
    """The input file cannot be read, or is of a kind that dacconv does not take."""


class UnsupportedError(DacconvError):
    """The input was read, but this cannot be done with it."""
