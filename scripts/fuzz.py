"""Run the program on damaged and hostile files of every format that it reads.

    python scripts/fuzz.py [--mutants 10000] [--formats onnx,pt2] [--seconds 600]

Each mutant of a seed (see ``fuzz_mutants.py``) is opened by a command in a worker process that
watches for what must never happen: code or a process started, a file changed or left behind, an
error that nobody foresaw, 20 seconds passed, 1 GB taken. A table shows what happened; the mutants
that failed are kept, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

SECONDS = 20
"""How long a mutant may take, of the processor's time."""
_PATIENCE = 20 * SECONDS
"""How long a mutant may take by the clock, on a machine that has other work."""
MOST_MEMORY = 1 << 30
"""Bytes that a mutant may take beyond the size of its file."""
_BATCH = 25
"""Mutants that a worker is given at a time."""

_PLAIN = ("--rank", "1", "--force", "--samples", "1")
_SKIP = (*_PLAIN, "--no-verify")
FORMATS: dict[str, tuple[tuple[str, ...], tuple[tuple[str, ...], ...], int]] = {
    "onnx": (
        ("a.onnx", "b.onnx", "c.onnx", "d.onnx"),
        (("inspect", "@"), ("convert", "@", *_SKIP, "-o", "out.onnx"),
         ("convert", "@", *_PLAIN, "-o", "out.onnx"), ("fuse", "@", "--force", "-o", "out.onnx"),
         ("check", "a.onnx", "@", "--samples", "1")), 10),
    "pt2": (
        ("a.pt2", "b.pt2", "c.pt2"),
        (("inspect", "@"), ("convert", "@", *_SKIP, "-o", "out.pt2"),
         ("convert", "@", *_PLAIN, "--input-shape", "2,3,9,9", "-o", "out.pt2"),
         ("convert", "@", *_PLAIN, "-o", "out.pt2")), 25),
    "state dict": (
        ("net.pth", "checkpoint.pt", "old.pth", "d.pth"),
        (("inspect", "@"), ("convert", "@", *_SKIP, "-o", "out.pth")), 10),
    "safetensors": (
        ("net.safetensors",),
        (("inspect", "@"), ("convert", "@", *_SKIP, "-o", "out.safetensors")), 10),
    "packed": (("a.dcz", "b.dcz"), (("unpack", "@", "--force", "-o", "out.onnx"),), 10),
    "plan": (("plan.json",), (("convert", "a.onnx", "--plan", "@", "--no-verify", "--force",
                               "-o", "out.onnx"),), 10),
    "TOML": (
        ("settings.toml", "release.toml"),
        (("convert", "a.onnx", "--config", "@", "--no-verify", "--force", "-o", "out.onnx"),
         ("run", "@", "--force")), 10),
    "sweep": (
        ("sweep.json", "sweep.csv"),
        (("convert", "a.onnx", "--from-sweep", "@", "--pick", "macs<=0.99", "--no-verify",
          "--force", "-o", "out.onnx"),), 10),
    "arrays": (
        ("a.npz", "b.npz", "c.npy"),
        (("read", "inputs", "@"),
         ("sweep", "a.onnx", "--data", "@", "--ranks", "1", "--layers", "conv1", "--samples", "1",
          "--force", "-o", "out.json")), 10),
    "image": (("images/a.png", "images/b.png"), (("read", "inputs", "images"),), 10),
    "timings": (("times.json",), (("read", "timings", "@"),), 10),
    "report": (("report.json",), (("convert", "a.onnx", "--plan", "@", "--no-verify", "--force",
                                   "-o", "out.onnx"),), 10),
}  # fmt: skip
"""Seeds, commands (``@`` is the mutant) and the share of all mutants of each format.

``read`` is no command: it opens what only commands that take long would, and does no more.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a mutant did: ``ok``, ``refused``, or the fault."""

    kind: str
    number: int
    verdict: str
    text: str = ""
    seconds: float = 0.0
    memory: int = 0


# -- one mutant ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Canary:
    """Notices what no file may cause; an audit hook calls it, which cannot be taken off again."""

    folder: Path
    events: list[str] = field(default_factory=list)
    active: bool = False

    _RUNS = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile",
             "subprocess.Popen", "pty.spawn", "socket.connect", "os.kill")  # fmt: skip
    _CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.chmod", "os.link", "os.symlink",
                "os.truncate", "os.mkdir", "shutil.rmtree")  # fmt: skip

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Note an event of the interpreter that is a fault."""
        if not self.active:
            return
        if event in self._RUNS:
            self.events.append(f"code was run: {event} {args!r:.100}")
        elif (
            event == "open"
            and isinstance(args[0], (str, bytes))
            and args[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            self._inside(event, args[0])
        elif event in self._CHANGES:
            for each in args[:2]:
                if isinstance(each, (str, bytes, os.PathLike)):
                    self._inside(event, os.fspath(each))

    def _inside(self, event: str, name: str | bytes) -> None:
        path = os.path.realpath(os.fsdecode(name))
        if (
            not path.startswith((str(self.folder), "/dev/", "/proc/self/"))
            and "__pycache__" not in path
        ):
            self.events.append(f"a file outside was changed: {event} {path}")


def run_command(arguments: Sequence[str]) -> tuple[int, str]:
    """Run the program in this process; its exit code, and all that it printed."""
    from dacconv.cli.app import app
    from dacconv.errors import describe

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            if arguments[0] == "read":
                read_file(arguments[1], Path(arguments[2]))
                return 0, printed.getvalue()
            code = app(list(arguments), prog_name="dacconv", standalone_mode=False) or 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except Exception as error:
            if type(error).__module__.startswith(("typer", "click")):
                return 2, printed.getvalue() + str(error)
            message, code = describe(error)
            if message.startswith("this is a bug"):
                frames = traceback.extract_tb(error.__traceback__)
                own = [frame for frame in frames if "dacconv" in frame.filename][-1]
                message = f"BUG {type(error).__name__}: {error} at {own.filename}:{own.lineno}"
            printed.write(message)
    return code, printed.getvalue()


def read_file(kind: str, path: Path) -> None:
    """Open calibration inputs or a file of timings."""
    if kind == "inputs":
        from dacconv import load
        from dacconv.calibration.inputs.pixels import InputOptions
        from dacconv.calibration.inputs.reading import read_inputs

        read_inputs(load("a.onnx"), path, InputOptions(range=(0, 255)), 0, 0)
    else:
        from dacconv.timing.cache import Cache
        from dacconv.timing.speeds import Target

        Cache(path).get(Target("onnxruntime", 1), "conv1")


def make_mutant(kind: str, number: int, seeds: Path) -> tuple[str, bytes, tuple[str, ...]]:
    """Name, bytes and command of a mutant; the same for the same number."""
    import fuzz_mutants

    rng = random.Random(f"{kind}:{number}")
    names, commands, _ = FORMATS[kind]
    name = names[number % len(names)]
    command = rng.choice(commands)
    data = fuzz_mutants.mutate(name, (seeds / name).read_bytes(), rng)
    mutant = str(Path(name).with_name(f"mutant{Path(name).suffix}"))
    return mutant, data, tuple(mutant if each == "@" else each for each in command)


def try_mutant(kind: str, number: int, seeds: Path, canary: Canary) -> Outcome:
    """Run one mutant in the folder of the canary, which holds copies of the seeds."""
    folder = canary.folder
    name, data, command = make_mutant(kind, number, seeds)
    (folder / name).write_bytes(data)
    before, environment = _state(folder), dict(os.environ)
    _forget_peak()
    resident, start = _memory("VmRSS"), time.process_time()
    canary.events.clear()
    canary.active = True
    try:
        code, printed = run_command(command)
    finally:
        canary.active = False
    seconds, memory = time.process_time() - start, _memory("VmHWM") - resident - len(data)
    fault = next(iter(canary.events), "")
    fault = fault or ("the environment was changed" if dict(os.environ) != environment else "")
    fault = fault or _changed(before, _state(folder), outputs=kind == "TOML")
    if "BUG " in printed:
        fault = fault or printed[printed.index("BUG ") :][:400]
    if "out of memory" in printed or memory > MOST_MEMORY:
        fault = fault or f"it took {memory >> 20} MB"
    if seconds > SECONDS:
        fault = fault or f"it took {seconds:.0f} s"
    if code not in (0, 1, 2, 3) or (code > 1 and not printed.strip()):
        fault = fault or f"exit code {code}: {printed[-200:]!r}"
    if any(not (c.isprintable() or c in "\n\t") for c in printed):
        fault = fault or f"control characters were printed: {printed!r:.300}"
    _clean(folder, before, name)
    verdict = "fault" if fault else "ok" if code == 0 else "refused"
    return Outcome(kind, number, verdict, fault, seconds, max(memory, 0))


def _state(folder: Path) -> dict[str, str]:
    """The files of a folder with their digests."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _changed(before: dict[str, str], after: dict[str, str], *, outputs: bool) -> str:
    """What a command did to files; empty for nothing. ``outputs``: the mutant names its own."""
    for name in sorted(before.keys() | after.keys()):
        if name not in before and (outputs or name.startswith("out.")):
            continue
        if before.get(name) != after.get(name):
            return f"the file {name!a} was {'changed' if name in before else 'left behind'}"
    return ""


def _clean(folder: Path, before: dict[str, str], mutant: str) -> None:
    """Remove what a command has written."""
    for path in sorted(folder.rglob("*"), reverse=True):
        name = str(path.relative_to(folder))
        if path.is_dir():
            with contextlib.suppress(OSError):
                path.rmdir()
        elif name not in before or name == mutant:
            path.unlink()


def _memory(field_name: str) -> int:
    """Resident memory now (``VmRSS``) or at its peak (``VmHWM``) in bytes; 0 where not known."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(field_name)), 0)


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


# -- many mutants -------------------------------------------------------------------------------


def work(seeds: Path, pipe: Connection) -> None:
    """A worker process: run the mutants that it is sent, one after the other."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (12 << 30, 12 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder = Path(tempfile.mkdtemp(prefix="worker", dir=seeds.parent)).resolve()
    shutil.copytree(seeds, folder, dirs_exist_ok=True)
    os.chdir(folder)
    tempfile.gettempdir()  # tries out folders
    for name in ("a.onnx", "c.pt2", "d.pth", "net.safetensors"):
        run_command(["inspect", name])  # import before the canary watches
    canary = Canary(folder)
    sys.addaudithook(canary)
    while (batch := pipe.recv()) is not None:
        for kind, number in batch:
            pipe.send((kind, number))
            pipe.send(try_mutant(kind, number, seeds, canary))
        pipe.send(None)


@dataclass(slots=True, eq=False)
class Worker:
    """A worker process with what it is doing, and since when."""

    process: BaseProcess
    pipe: Connection
    batch: list[tuple[str, int]] = field(default_factory=list)
    since: float = float("inf")

    @classmethod
    def start(cls, seeds: Path) -> Worker:
        """Start a process that waits for mutants."""
        here, there = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=work, args=(seeds, there))
        process.start()
        there.close()
        return cls(process, here)

    def give(self, batch: list[tuple[str, int]]) -> None:
        """Let it run these mutants, or end where there are none."""
        self.batch = list(batch)
        with contextlib.suppress(OSError):
            self.pipe.send(batch or None)

    def dead(self) -> str:
        """Why it must be replaced; empty where it need not."""
        if not self.process.is_alive() and not self.pipe.poll():
            return f"the process died with {self.process.exitcode}"
        if self.batch and time.monotonic() - self.since > _PATIENCE:
            self.process.kill()
            self.process.join()
            return f"it took more than {_PATIENCE} s by the clock"
        return ""


def run_all(tasks: list[tuple[str, int]], seeds: Path, count: int) -> Iterator[Outcome]:
    """The outcomes of mutants, from ``count`` processes; one that dies is replaced."""
    waiting = [tasks[i : i + _BATCH] for i in range(0, len(tasks), _BATCH)][::-1]
    workers = [Worker.start(seeds) for _ in range(min(count, len(waiting)))]
    for worker in workers:
        worker.give(waiting.pop())
    try:
        while any(worker.batch for worker in workers):
            wait([worker.pipe for worker in workers if worker.batch], timeout=1)
            for index, worker in enumerate(workers):
                try:
                    while worker.batch and worker.pipe.poll():
                        message = worker.pipe.recv()
                        worker.since = time.monotonic()
                        if isinstance(message, Outcome):
                            worker.batch.remove((message.kind, message.number))
                            yield message
                except (EOFError, OSError):
                    worker.process.join(5)
                if worker.batch and (reason := worker.dead()):
                    yield Outcome(*worker.batch[0], "fault", reason)
                    rest = worker.batch[1:]
                    workers[index] = Worker.start(seeds)
                    workers[index].give(rest or (waiting.pop() if waiting else []))
                elif not worker.batch and waiting:
                    worker.give(waiting.pop())
        for worker in workers:
            worker.give([])
            worker.process.join(10)
    finally:
        for worker in workers:
            worker.process.kill()


def tasks_of(mutants: int, formats: Sequence[str], first: int) -> list[tuple[str, int]]:
    """Numbers of mutants of each format by its share, in an order that mixes them."""
    whole = sum(FORMATS[kind][2] for kind in formats)
    tasks = [
        (kind, first + number)
        for kind in formats
        for number in range(max(1, round(mutants * FORMATS[kind][2] / whole)))
    ]
    random.Random(0).shuffle(tasks)
    return tasks


def table(outcomes: Sequence[Outcome]) -> str:
    """A line of counts for each format, then the faults."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for each in outcomes:
        counts[each.kind][each.verdict] += 1
    lines = [
        f"{'format':12} {'mutants':>8} {'opened':>8} {'refused':>8} {'faults':>8} "
        f"{'slowest':>9} {'memory':>8}"
    ]
    for kind, count in sorted(counts.items()):
        own = [each for each in outcomes if each.kind == kind]
        slowest, memory = max(each.seconds for each in own), max(each.memory for each in own)
        lines.append(
            f"{kind:12} {len(own):8} {count['ok']:8} {count['refused']:8} {count['fault']:8} "
            f"{slowest:7.1f} s {memory >> 20:5} MB"
        )
    lines.append(f"{len(outcomes)} mutants, {sum(c['fault'] for c in counts.values())} faults")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutants; 1 where one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mutants", type=int, default=10_000, help="how many in all (10000)")
    parser.add_argument("--formats", default=",".join(FORMATS), help=f"of {', '.join(FORMATS)}")
    parser.add_argument("--first", type=int, default=0, help="the first number of each format (0)")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after that")
    parser.add_argument("--keep", type=Path, default=Path("out/fuzz"), help="where faults go")
    options = parser.parse_args(arguments)
    outcomes, start = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz") as place:
        seeds = Path(place) / "seeds"
        write_seeds(seeds)
        tasks = tasks_of(options.mutants, options.formats.split(","), options.first)
        for outcome in run_all(tasks, seeds, options.workers):
            outcomes.append(outcome)
            if outcome.verdict == "fault":
                name, data, command = make_mutant(outcome.kind, outcome.number, seeds)
                options.keep.mkdir(parents=True, exist_ok=True)
                kept = (
                    options.keep
                    / f"{outcome.kind.replace(' ', '-')}-{outcome.number}{Path(name).suffix}"
                )
                kept.write_bytes(data)
                print(f"{kept} ({' '.join(command)}): {outcome.text!a}", flush=True)
            if time.monotonic() - start > options.seconds:
                break
            if len(outcomes) % 1000 == 0:
                print(
                    f"{len(outcomes)} of {len(tasks)}, {time.monotonic() - start:.0f} s", flush=True
                )
    print(table(outcomes))
    return int(any(each.verdict == "fault" for each in outcomes))


def write_seeds(folder: Path) -> None:
    """Make the seeds in a new folder, in a process of its own."""
    folder.mkdir()
    process = multiprocessing.get_context("spawn").Process(target=_write_seeds, args=(folder,))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit("the seeds could not be made")


def _write_seeds(folder: Path) -> None:
    import fuzz_mutants

    os.chdir(folder)

    def run(arguments: list[str]) -> None:
        code, printed = run_command(arguments)
        if code:
            raise SystemExit(f"dacconv {' '.join(arguments)}: {printed}")

    fuzz_mutants.make_seeds(folder, run)


if __name__ == "__main__":
    sys.exit(main())
