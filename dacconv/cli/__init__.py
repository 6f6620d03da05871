"""The command line.

Importing it takes a moment, in which Ctrl-C ends the program without a traceback.
"""

import os
import signal

TYPE_CHECKING = False  # as typing has it; what is not imported here takes no time
if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 and the signal's number."""


def _stop(number: int, frame: "FrameType | None") -> None:
    """End the process while it still imports: there is nothing to clean up."""
    os.write(2, b"dacconv: interrupted\n")
    os._exit(INTERRUPTED)


def end_of_imports() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    try:  # noqa: SIM105 - contextlib takes time to import
        signal.signal(signal.SIGINT, _stop)
    except ValueError:  # not the main thread, which alone hears of signals
        pass
