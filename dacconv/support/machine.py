"""The description of this machine, which every timing is reported with."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def cpu() -> str:
    """The name of the processor, and the number of cores that this process may use."""
    return f"{processor()}, {cores()} cores"


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The name of the processor, from the operating system."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def has_int8_dot_products() -> bool:
    """Whether the processor sums 8-bit products without saturating: VNNI, AMX, or one of Arm.

    True where the operating system does not say.
    """
    if is_arm():
        return True
    flags = _flags()
    return not flags or any("vnni" in flag or flag == "amx_int8" for flag in flags)


def is_arm() -> bool:
    """Whether the processor is an Arm."""
    return platform.machine().lower() in ("arm64", "aarch64") or platform.machine().startswith(
        "armv"
    )


def _flags() -> frozenset[str]:
    """The features of the processor that Linux lists; empty elsewhere."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = [line.partition(":")[2].split() for line in lines if line.startswith("flags")]
    return frozenset(flags[0]) if flags else frozenset()
