"""The resident memory of this process, as Linux counts it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident() -> int | None:
    """The bytes that are resident now; None on other systems."""
    return _field("VmRSS")


def peak() -> int | None:
    """The most bytes that were resident since the program started or :func:`forget_peak`.

    ``ru_maxrss`` would be wrong: it starts at the memory of the parent process.
    """
    return _field("VmHWM")


def forget_peak() -> bool:
    """Reset the peak to the present memory; false where the system does not allow it."""
    with suppress(OSError):
        _RESET.write_text("5", encoding="ascii")
        return True
    return False


def _field(name: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
