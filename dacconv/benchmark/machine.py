"""Facts about the machine, from the standard library alone."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

from dacconv.benchmark.result import Case, Machine

BUSY_SHARE, INTERRUPTED_SHARE = 0.25, 0.2
"""A load average above this share of the cores is worth a warning, and so many runs."""


def machine() -> Machine:
    """This machine now; what the system does not tell is None or general."""
    return Machine(
        processor=_processor(),
        cores=cores(),
        memory_gib=_memory(),
        system=f"{platform.system()} {platform.release()}".strip(),
        python=platform.python_version(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def warnings(facts: Machine, cases: Iterable[Case]) -> Iterator[str]:
    """What may have disturbed the times."""
    if facts.load is not None and facts.load > BUSY_SHARE * facts.cores:
        yield (
            f"the machine was busy at the start: load average {facts.load:.1f} on {facts.cores} "
            f"core{'s' if facts.cores > 1 else ''}; times and ratios may be off"
        )
    worst = max(timing.interrupted for case in cases for timing in case.timings)
    if worst > INTERRUPTED_SHARE:
        yield (
            f"other work took a core away during up to {worst:.0%} of the runs of a model; "
            "they are left out where a round has others"
        )


def _processor() -> str:
    told = _field(Path("/proc/cpuinfo"), "model name")
    return told or platform.processor() or platform.machine() or "unknown"


def _memory() -> float | None:
    told = _field(Path("/proc/meminfo"), "MemTotal")
    return None if told is None else round(int(told.split()[0]) / 2**20, 1)


def _field(path: Path, name: str) -> str | None:
    """The value of ``name: value`` in a file of Linux's; None elsewhere."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)
