"""The errors that a user sees: what is wrong, where, and what to do about it."""

from __future__ import annotations


class DacconvError(Exception):
    """Bad input, told in one message.

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
        message = f"{self.where}: {self.what}" if self.where else self.what
        return f"{message}\n  {self.hint}" if self.hint else message


class UsageError(DacconvError):
    """The options contradict each other, the model, or their own rules."""

    exit_code = 2


class FormatError(DacconvError):
    """The input file cannot be read, or is of a kind that dacconv does not take."""


class UnsupportedError(DacconvError):
    """The input was read, but this cannot be done with it."""
