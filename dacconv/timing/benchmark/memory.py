"""This process's resident memory, as Linux counts it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident() -> int | None:
    """Bytes held now."""
    return _field("VmRSS")


def peak() -> int | None:
    """The most bytes held since the program started, or since :func:`forget_peak`.

    Not ``ru_maxrss``: that one begins at what the parent held when it started this process.
    """
    return _field("VmHWM")


def forget_peak() -> bool:
    """Begin the peak anew at what is held now; false where the system does not let it."""
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
