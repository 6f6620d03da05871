"""Converting several models, one after another or in parallel; a failure stops no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dacconv.conversion.pipeline import default_target
from dacconv.errors import UsageError, describe
from dacconv.jobs import convert as converting
from dacconv.jobs.write import Outcome
from dacconv.settings import Settings
from dacconv.support.files import as_write_error
from dacconv.support.interrupts import keep_interrupts_from_processes
from dacconv.support.outputs import identity, report_outputs, require_file

SUFFIXES = {"json": ".json", "markdown": ".md", "html": ".html", "plots": ".plots"}
"""The suffix of a report by its kind; that of ``plots`` is a folder."""
DONE, MISSED, FAILED = "done", "gate missed", "failed"


@dataclass(frozen=True, slots=True)
class Task:
    """One model to convert; ``name`` is its name in the summary.

    ``reports`` are the paths of its reports by kind; the caller writes them.
    """

    name: str
    source: Path
    settings: Settings
    output: Path
    reports: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Handling:
    """Options of a batch: ``jobs`` tasks at a time; the others as in ``convert.convert_file``."""

    jobs: int = 1
    force: bool = False
    keep: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The result of a task: an outcome, or the message and exit code of an error."""

    task: Task
    outcome: Outcome | None
    error: str = ""
    code: int = 0

    @property
    def status(self) -> str:
        """``done``, ``gate missed`` or ``failed``."""
        return FAILED if self.outcome is None else MISSED if self.code else DONE


def tasks_for(
    models: Sequence[Path],
    settings: Settings,
    folder: Path | None,
    *,
    reports: Mapping[str, Path],
    dry_run: bool,
) -> tuple[Task, ...]:
    """A task for each model; the output goes to ``folder``, or beside the model for None.

    ``reports`` are folders by kind; a report has the name of the output with a suffix.
    """
    tasks = []
    for model in models:
        if not model.name:
            raise UsageError("is a folder; name files", where=str(model))
        target = model.with_suffix(".plan.json") if dry_run else default_target(model)
        output = target if folder is None else folder / target.name
        named = {kind: report_path(place, output, kind) for kind, place in reports.items()}
        tasks.append(Task(str(model), model, settings, output, named))
    return tuple(tasks)


def report_path(folder: Path, output: Path, kind: str) -> Path:
    """The path of a report, as ``folder/net.dac.onnx.html`` for the output ``net.dac.onnx``."""
    return folder / f"{output.name}{SUFFIXES[kind]}"


def check_outputs(tasks: Sequence[Task]) -> None:
    """Raise UsageError where two tasks would write the same file, or one the input of another."""
    owners: dict[tuple[object, ...], Task] = {}
    sources = {identity(task.source): task for task in tasks}
    for task in tasks:
        for path in possible_outputs(task):
            if reader := sources.get(identity(path)):
                raise UsageError(
                    f"would be written for {task.name}, and is the input of {reader.name}",
                    where=str(path),
                )
            owner = owners.setdefault(identity(path), task)
            if owner is not task:
                raise UsageError(
                    f"{owner.name} and {task.name} would both write it",
                    where=str(path),
                    hint="nothing was done; give them different names, or convert them one by one",
                )


def run_all(
    tasks: Sequence[Task], handling: Handling, notify: Callable[[Result, int, int], None]
) -> list[Result]:
    """Run all tasks, ``handling.jobs`` at a time; results are in the order of the tasks.

    ``notify`` is called with each result as soon as it exists, the number of results so far and
    the number of tasks.

    Raises:
        UsageError: outputs collide; nothing is done then.
    """
    check_outputs(tasks)
    make_folders(tasks)
    results: dict[int, Result] = {}
    for index, result in _results(tasks, handling):
        results[index] = result
        notify(result, len(results), len(tasks))
    return [results[index] for index in range(len(tasks))]


def make_folders(tasks: Iterable[Task]) -> None:
    """Create the folders that the tasks write into.

    Raises:
        WriteError: a folder cannot be created.
    """
    for task in tasks:
        for path in (task.output, *task.reports.values()):
            require_file(path, str(path))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise as_write_error(error, path.parent) from error


def attempt(task: Task, handling: Handling) -> Result:
    """Run one task; an error becomes part of the result."""
    try:
        if handling.dry_run:
            outcome = converting.dry_run(
                task.source,
                task.settings,
                output=task.output,
                force=handling.force,
                others=report_outputs(task.reports),
            )
        else:
            outcome = converting.convert_file(
                task.source,
                task.settings,
                output=task.output,
                force=handling.force,
                keep=handling.keep,
                others=report_outputs(task.reports),
            )
    except Exception as error:
        message, code = describe(error)
        return Result(task, None, message, code)
    return Result(task, _with_note(outcome, handling), code=1 if outcome.report.missed else 0)


def exit_code(results: Sequence[Result]) -> int:
    """The largest exit code of the results: 0 done, 1 a gate missed, 2 or 3 a failure."""
    return max((result.code for result in results), default=0)


def _results(tasks: Sequence[Task], handling: Handling) -> Iterator[tuple[int, Result]]:
    at_once = min(handling.jobs, len(tasks))
    if at_once == 1:
        for index, task in enumerate(tasks):
            yield index, attempt(task, handling)
        return
    missing = set(range(len(tasks)))
    for index, result in _in_processes(list(enumerate(tasks)), handling, at_once):
        missing.discard(index)
        yield index, result
    for index in sorted(missing):  # a process died; run alone, the task that caused it dies again
        results = list(_in_processes([(index, tasks[index])], handling, 2))
        failure = Result(tasks[index], None, "its process died; perhaps the memory is full", 3)
        yield results[0] if results else (index, failure)


def _in_processes(
    numbered: Sequence[tuple[int, Task]], handling: Handling, at_once: int
) -> Iterator[tuple[int, Result]]:
    """Results in the order in which they are finished; those of a process that dies are missing."""
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    parallel = Parallel(n_jobs=at_once, return_as="generator_unordered", batch_size=1)
    try:
        keep_interrupts_from_processes()
        results = parallel(delayed(_numbered)(index, task, handling) for index, task in numbered)
        yield from results
    except TerminatedWorkerError:
        return


def _numbered(index: int, task: Task, handling: Handling) -> tuple[int, Result]:
    return index, attempt(task, handling)


def _with_note(outcome: Outcome, handling: Handling) -> Outcome:
    """The outcome, with a note in the report where other tasks ran at the same time."""
    report = outcome.report
    if handling.jobs == 1 or report.verification is None:
        return outcome
    note = f"the times are not reliable: up to {handling.jobs} conversions ran at the same time"
    return replace(outcome, report=replace(report, notes=(*report.notes, note)))


def possible_outputs(task: Task) -> set[Path]:
    """The files that a task may write: model, the plan beside it, and reports.

    External data is named after the model and its own bytes.
    """
    output = task.output
    paths = {output, *task.reports.values()}
    if output.suffix not in (".onnx", ".pt2"):
        paths.add(output.with_suffix(".plan.json"))
    return paths
