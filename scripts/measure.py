"""What the measuring scripts share: whole processes in turn, and tables of ratios.

Only the standard library is imported. A child's peak memory starts at what its parent holds
when it is started, so a parent that has loaded torch would measure itself.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
DACCONV = str(BIN / "dacconv")


@dataclass(frozen=True, slots=True)
class Run:
    """Wall time, processor time and peak resident memory of one process."""

    seconds: float
    cpu: float
    mebibytes: float


def data_folder() -> Path:
    """The folder of real checkpoints, from ``DACCONV_DATA``."""
    folder = Path(os.environ.get("DACCONV_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        stop(f"real checkpoints are not at {folder}; set DACCONV_DATA to their folder")
    return folder


def stop(message: str) -> NoReturn:
    """End the script with a message on stderr."""
    sys.exit(message)


def run(command: Sequence[str]) -> Run:
    """Run a process to its end, its output thrown away; stop if it fails."""
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        stop(f"{' '.join(command)}\nended with {process.returncode}:\n{errors.decode()}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def alternate(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[Run]]:
    """Run every command once to warm the disk's cache, then ``rounds`` times in turn."""
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for turn in range(rounds + 1):
        for name, command in commands.items():
            result = run(command)
            if turn:
                runs[name].append(result)
        progress(f"round {turn} of {rounds}")
    return runs


def progress(text: str) -> None:
    """One line on stderr, so that stdout stays a document."""
    print(text, file=sys.stderr, flush=True)


def spread(values: Iterable[float], digits: int = 2) -> str:
    """``median (min-max)``."""
    values = sorted(values)
    return f"{median(values):.{digits}f} ({values[0]:.{digits}f}-{values[-1]:.{digits}f})"


def ratios(runs: Sequence[Run], base: Sequence[Run], of: Callable[[Run], float]) -> list[float]:
    """The ratios of the runs that were made side by side."""
    return [of(one) / of(other) for one, other in zip(runs, base, strict=True)]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


MEASURES: tuple[tuple[str, Callable[[Run], float], int], ...] = (
    ("seconds", lambda run: run.seconds, 2),
    ("processor seconds", lambda run: run.cpu, 2),
    ("peak MiB", lambda run: run.mebibytes, 0),
)
"""What is told of a process: name, value and digits. Processor time bears a busy machine best."""


def comparison(commands: Mapping[str, Sequence[str]], rounds: int) -> str:
    """A table of every command against the first one, measured side by side."""
    runs = alternate(commands, rounds)
    base = next(iter(runs.values()))
    rows = []
    for name, results in runs.items():
        row = [name]
        for _, of, digits in MEASURES:
            row.append(spread((of(result) for result in results), digits))
            row.append("1" if results is base else spread(ratios(results, base, of)))
        rows.append(row)
    header = ["process"]
    for name, _, _ in MEASURES:
        header += [name, "ratio"]
    return table(header, rows)


def versions(*packages: str) -> str:
    """``name version`` of each package."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in packages)


def machine() -> str:
    """Processor, its count, memory, system, and how busy it is now."""
    cpu, memory = platform.machine(), ""
    if (path := Path("/proc/cpuinfo")).is_file():
        names = [line for line in path.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    if (path := Path("/proc/meminfo")).is_file():
        memory = f", {int(path.read_text().split()[1]) / 2**20:.0f} GiB"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{cpu}, {cores} cores{memory}, {platform.system()}{load}"


def title(text: str, *packages: str) -> None:
    """The head of a measurement: what, on which machine, with which versions."""
    print(
        f"### {text}\n\n{machine()}; Python {platform.python_version()}, {versions(*packages)}.\n"
    )
