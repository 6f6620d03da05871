"""The machine that a benchmark ran on, and warnings about other work on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

from dacconv.support.machine import cores, processor
from dacconv.timing.benchmark.result import Case, Machine

BUSY_SHARE, INTERRUPTED_SHARE = 0.25, 0.2
"""A warning is given for a load average above the first share of the cores, and for more than the
second share of interrupted runs."""


def machine() -> Machine:
    """The facts of this machine; those that the system does not report are None or general."""
    return Machine(
        processor=processor(),
        cores=cores(),
        memory_gib=_memory(),
        system=f"{platform.system()} {platform.release()}".strip(),
        python=platform.python_version(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def warnings(facts: Machine, cases: Iterable[Case]) -> Iterator[str]:
    """Warnings about what may have disturbed the times."""
    if facts.load is not None and facts.load > BUSY_SHARE * facts.cores:
        yield (
            f"the machine was busy at the start: load average {facts.load:.1f} on {facts.cores} "
            f"core{'s' if facts.cores > 1 else ''}; times and ratios may be off"
        )
    worst = max(timing.interrupted for case in cases for timing in case.timings)
    if worst > INTERRUPTED_SHARE:
        yield (
            f"other work took a core away during up to {worst:.0%} of the runs of a model; "
            "these runs are left out where a round has others"
        )


def _memory() -> float | None:
    """The GiB of memory that Linux reports; None elsewhere."""
    try:
        first = Path("/proc/meminfo").read_text(encoding="ascii").split(maxsplit=2)
    except OSError:
        return None
    return round(int(first[1]) / 2**20, 1) if first[0] == "MemTotal:" else None
