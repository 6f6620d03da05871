"""The parent's side of a worker process: sends requests, waits for answers, reports failures."""

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

TIMEOUT_SECONDS = 600.0
"""The longest time for the answer to a request."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The median seconds of a run in one turn, how many runs, and how many were interrupted."""

    median: float
    runs: int
    interrupted: int


class Worker:
    """A process with one model; as a context manager it always ends the process."""

    def __init__(self, path: Path, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self._path, self._timeout = path, timeout
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
        """The id of the process."""
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
        """The memory of the process."""
        return Memory(**self._ask("memory"))

    def profile(self, runs: int) -> Profile:
        """The runtime's profile over so many runs."""
        answer = self._ask("profile", runs=runs)
        spans = tuple(Span(**span) for span in answer["spans"])
        return Profile(spans, answer["ms"], answer["runs"])

    def _ask(self, request_name: str, **parameters: Any) -> Any:
        """Send a request and wait for its answer.

        Raises:
            DacconvError: the worker failed, ended, or did not answer in time.
        """
        try:
            request = json.dumps({"do": request_name, "with": parameters})
        except TypeError as error:
            raise UsageError(
                f"an option cannot be passed to the process that runs the model: {error}",
                where=str(self._path),
            ) from error
        stream = self._process.stdin
        with suppress(OSError):  # a worker that has ended is reported below
            if stream is not None:
                stream.write(request + "\n")
                stream.flush()
        try:
            line = self._answers.get(timeout=self._timeout)
        except queue.Empty as error:
            raise UnsupportedError(
                f"its process gave no answer for {self._timeout:g} s ({request_name})",
                where=str(self._path),
                hint="is the input too large for this machine?",
            ) from error
        if not line:
            raise self._ended()
        answer = json.loads(line)
        if "error" in answer:
            raise self._error(answer["error"])
        return answer["ok"]

    def _error(self, fields: dict[str, str]) -> DacconvError:
        """The error of the worker; it names the file of the model unless it names an option."""
        kind: type[DacconvError] = getattr(errors, fields["kind"], UnsupportedError)
        where = fields["where"]
        if str(self._path) not in where and not where.startswith("--"):
            where = str(self._path)
        return kind(fields["what"], where=where, hint=fields["hint"])

    def _ended(self) -> DacconvError:
        """The error for a worker that has ended: its exit code and its last line of output."""
        code = self._process.wait()
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 4096))
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        how = f"ended with code {code}"
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            how = f"was ended by {name}"
        hint = f"its last output: {lines[-1]}" if lines else "it printed nothing"
        if code == -9:
            hint += "; the system sends SIGKILL when memory runs out"
        return UnsupportedError(
            f"the process that ran the model {how}", where=str(self._path), hint=hint
        )

    def _collect(self) -> None:
        """Queue the answers as they arrive, and an empty one at the end."""
        with suppress(OSError, ValueError):
            for line in self._process.stdout or ():
                self._answers.put(line)
        self._answers.put("")


def _environment() -> dict[str, str]:
    """The parent's environment with its import paths, which a script may have changed."""
    home = str(Path(dacconv.__file__).parents[1])
    paths = dict.fromkeys([home, *(entry for entry in sys.path if entry)])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
