"""The parent's end of a worker process: asks, waits, and tells what went wrong in it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import dacconv
from dacconv import errors
from dacconv.errors import DacconvError, UnsupportedError, UsageError
from dacconv.formats.base import LoadOptions
from dacconv.formats.timing import Profile, Setting, Span
from dacconv.graph.types import ValueSpec
from dacconv.timing.benchmark.result import Memory

PATIENCE_SECONDS = 600.0
"""How long a worker may take for one answer."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The median seconds of a run in one turn, how many runs, and how many were interrupted."""

    median: float
    runs: int
    interrupted: int


class Worker:
    """A process that holds one model; a context manager, so that none is ever left behind."""

    def __init__(self, path: Path, *, patience: float = PATIENCE_SECONDS) -> None:
        self._path, self._patience = path, patience
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed at the exit)
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dacconv.timing.benchmark.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(),
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the parent, which then ends its workers
        )
        threading.Thread(target=self._collect, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    @property
    def process_id(self) -> int:
        """The process's number in the system."""
        return self._process.pid

    def load(
        self,
        options: LoadOptions,
        setting: Setting,
        inputs: tuple[ValueSpec, ...],
        seed: int,
        *,
        profile: bool = False,
    ) -> None:
        """Load the model and run it once."""
        self._ask(
            "load",
            path=str(self._path),
            options=asdict(options),
            setting=asdict(setting),
            inputs=[asdict(spec) for spec in inputs],
            seed=seed,
            profile=profile,
        )

    def run(self, seconds: float, runs: int = 1) -> Turn:
        """Run the model for ``seconds`` and at least ``runs`` times."""
        return Turn(**self._ask("run", seconds=seconds, runs=runs))

    def memory(self) -> Memory:
        """What the process held."""
        return Memory(**self._ask("memory"))

    def profile(self, runs: int) -> Profile:
        """The runtime's profile over so many runs."""
        answer = self._ask("profile", runs=runs)
        spans = tuple(Span(**span) for span in answer["spans"])
        return Profile(spans, answer["ms"], answer["runs"])

    def _ask(self, what: str, **given: Any) -> Any:
        """Send a request and wait for its answer.

        Raises:
            DacconvError: what the worker says, or that it ended or answers no more.
        """
        try:
            request = json.dumps({"do": what, "with": given})
        except TypeError as error:
            raise UsageError(
                f"an option cannot be handed to the process that runs the model: {error}",
                where=str(self._path),
            ) from error
        stream = self._process.stdin
        with suppress(OSError):  # a worker that is gone is told of below
            if stream is not None:
                stream.write(request + "\n")
                stream.flush()
        try:
            line = self._answers.get(timeout=self._patience)
        except queue.Empty as error:
            raise UnsupportedError(
                f"its process gave no answer for {self._patience:g} s ({what})",
                where=str(self._path),
                hint="is the input too large for this machine?",
            ) from error
        if not line:
            raise self._ended()
        answer = json.loads(line)
        if "error" in answer:
            raise self._told(answer["error"])
        return answer["ok"]

    def _told(self, told: dict[str, str]) -> DacconvError:
        kind = getattr(errors, told["kind"], UnsupportedError)
        where = told["where"]
        named = where if str(self._path) in where or where.startswith("--") else str(self._path)
        made: DacconvError = kind(told["what"], where=named, hint=told["hint"])
        return made

    def _ended(self) -> DacconvError:
        """The worker is gone: how it ended, and the last that it said."""
        code = self._process.wait()
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 4096))
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        how = f"ended with code {code}"
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            how = f"was ended by {name}"
        hint = f"it last said: {said[-1]}" if said else "it said nothing"
        if code == -9:
            hint += "; SIGKILL is what the system sends when memory runs out"
        return UnsupportedError(
            f"the process that ran the model {how}", where=str(self._path), hint=hint
        )

    def _collect(self) -> None:
        """Hand on the answers as they come; an empty one at the end."""
        with suppress(OSError, ValueError):
            for line in self._process.stdout or ():
                self._answers.put(line)
        self._answers.put("")


def _environment() -> dict[str, str]:
    """The parent's environment, with what it imports from; a script may have changed that."""
    home = str(Path(dacconv.__file__).parents[1])
    paths = dict.fromkeys([home, *(entry for entry in sys.path if entry)])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
