"""The command line.

Importing it takes a moment, in which Ctrl-C ends the program without a traceback.
"""

import os
import signal
import threading
from types import FrameType

INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 and the signal's number."""


def _stop(number: int, frame: FrameType | None) -> None:
    """End the process while it still imports: there is nothing to clean up."""
    os.write(2, b"dacconv: interrupted\n")
    os._exit(INTERRUPTED)


def end_of_imports() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_is_main = threading.current_thread() is threading.main_thread()
if _is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop)
