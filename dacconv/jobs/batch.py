"""Many models at once: each is converted for itself, and one that fails stops no other."""

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
"""What the file of a report ends in, by its kind; figures have a folder."""
DONE, MISSED, FAILED = "done", "gate missed", "failed"


@dataclass(frozen=True, slots=True)
class Task:
    """One model to convert; ``name`` is what it is called in the summary.

    ``reports`` are the files that its reports go to, by their kind; who calls writes them.
    """

    name: str
    source: Path
    settings: Settings
    output: Path
    reports: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Handling:
    """How tasks are done: ``jobs`` at a time; the rest as in ``jobs.convert.convert_file``."""

    jobs: int = 1
    force: bool = False
    keep: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What came of a task: an outcome, or the error's message and exit code."""

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
    """A task for each model, written to ``folder``, or beside the model where there is none.

    ``reports`` are folders by the kind of report, which is named like the output.
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
    """``folder/net.dac.onnx.html``: the report of kind ``html`` on ``net.dac.onnx``."""
    return folder / f"{output.name}{SUFFIXES[kind]}"


def check_outputs(tasks: Sequence[Task]) -> None:
    """Raise UsageError where two tasks would write the same file, or one another's input."""
    owners: dict[tuple[object, ...], Task] = {}
    sources = {identity(task.source): task for task in tasks}
    for task in tasks:
        for path in claimed(task):
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
    """Do all tasks, several at once where ``handling`` says so; results in the order of the tasks.

    ``notify`` is called with each result as soon as it is there, their number so far and in all.

    Raises:
        UsageError: outputs that collide, before anything is done.
    """
    check_outputs(tasks)
    make_folders(tasks)
    results: dict[int, Result] = {}
    for index, result in _results(tasks, handling):
        results[index] = result
        notify(result, len(results), len(tasks))
    return [results[index] for index in range(len(tasks))]


def make_folders(tasks: Iterable[Task]) -> None:
    """Make the folders that the tasks write into.

    Raises:
        WriteError: one cannot be made.
    """
    for task in tasks:
        for path in (task.output, *task.reports.values()):
            require_file(path, str(path))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise as_write_error(error, path.parent) from error


def attempt(task: Task, handling: Handling) -> Result:
    """Do one task; whatever goes wrong is in the result."""
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
    return Result(task, _timed_among(outcome, handling), code=1 if outcome.report.missed else 0)


def exit_code(results: Sequence[Result]) -> int:
    """The gravest of the results': 0 done, 1 a gate missed, 2 or 3 a failure."""
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
    for index in sorted(missing):  # a process died: who kills it alone is the one to blame
        alone = list(_in_processes([(index, tasks[index])], handling, 2))
        died = Result(tasks[index], None, "its process died; perhaps the memory is full", 3)
        yield alone[0] if alone else (index, died)


def _in_processes(
    numbered: Sequence[tuple[int, Task]], handling: Handling, at_once: int
) -> Iterator[tuple[int, Result]]:
    """Results as they come; those that a dying process takes with it do not."""
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


def _timed_among(outcome: Outcome, handling: Handling) -> Outcome:
    """The outcome with the word that its times are not worth much, where that is so."""
    report = outcome.report
    if handling.jobs == 1 or report.verification is None:
        return outcome
    note = f"timed while up to {handling.jobs} conversions ran at once: the times say little"
    return replace(outcome, report=replace(report, notes=(*report.notes, note)))


def claimed(task: Task) -> set[Path]:
    """What a task may write: the file, external data, the plan beside it, and reports."""
    output = task.output
    paths = {output, output.with_name(f"{output.name}.data"), *task.reports.values()}
    if output.suffix not in (".onnx", ".pt2"):
        paths.add(output.with_suffix(".plan.json"))
    return paths
