"""A release: the jobs that a ``dacconv.toml`` lists, and the checksums of their outputs.

::

    output-dir = "dist"              # beside this file; the default
    reports = ["markdown", "html"]   # written beside the outputs; none by default

    [defaults]                       # settings that all jobs share
    last-k = 4
    max-error = 0.2

    [jobs.small]                     # one table per job
    model = "nets/resnet.onnx"
    output = "resnet-small.onnx"     # the default is resnet.dac.onnx
    rank = 2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dacconv.conversion.pipeline import default_target
from dacconv.errors import UsageError
from dacconv.jobs import batch
from dacconv.jobs.batch import SUFFIXES, Result, Task, report_path
from dacconv.jobs.settings_file import entries, load_toml, setting_names
from dacconv.settings import Settings, check_known, overlaid
from dacconv.support.files import Digest, as_write_error
from dacconv.support.outputs import Output, check_outputs, identity, require_file

FILE = "dacconv.toml"
SUMS = "SHA256SUMS"
TOP_KEYS = ("output-dir", "reports", "defaults", "jobs")
JOB_KEYS = ("model", "output")


@dataclass(frozen=True, slots=True)
class Release:
    """The tasks of a release, the folder of their outputs, and the file that lists them."""

    tasks: tuple[Task, ...]
    folder: Path
    file: Path = Path(FILE)

    @property
    def sums(self) -> Path:
        """The file of the checksums."""
        return self.folder / SUMS


def read_release(path: Path, *, dry_run: bool = False) -> Release:
    """Read a release file. Paths in it are relative to the file's folder.

    Raises:
        UsageError: the file is not TOML, has an unknown key (the message names the nearest), a
            value of a wrong type, no job, or an output outside the folder.
    """
    data = load_toml(path)
    where = str(path)
    check_known(data, TOP_KEYS, where)
    jobs = _table(data, "jobs", where)
    if not jobs:
        raise UsageError("lists no job", where=where, hint="write [jobs.NAME] with a model")
    folder = Path(_text(data.get("output-dir", "dist"), f"{where}, output-dir"))
    defaults = _table(data, "defaults", where)
    check_known(defaults, setting_names(), f"{where}, defaults")
    shared = entries(defaults, f"{where}, defaults")
    kinds = _reports(data.get("reports", []), f"{where}, reports")
    tasks = []
    for name in jobs:
        values = _table(jobs, name, f"{where}, jobs")
        tasks.append(_task(name, values, shared, folder, kinds, f"{where}, jobs.{name}", dry_run))
    return Release(tuple(tasks), folder, path.absolute())


def check_sums(release: Release, *, force: bool) -> None:
    """Check that the checksums can be written, and remove old ones.

    The file exists afterwards only if every job succeeds.

    Raises:
        UsageError: the file exists and ``force`` is false, or it is also an input or output of a
            job; or a job would write the file that lists the jobs.
        WriteError: the old file cannot be removed.
    """
    sums = release.sums
    batch.make_folders(release.tasks)
    inputs = [release.file, *(task.source for task in release.tasks)]
    require_file(sums, str(sums))
    if sums.parent.is_dir():
        check_outputs([Output(sums)], inputs, force=force)
    reserved = {identity(path) for path in (sums, release.file)}
    for task in release.tasks:
        for path in batch.possible_outputs(task):
            if identity(path) in reserved:
                raise UsageError(
                    f"job {task.name} would write it, and it belongs to the release",
                    where=str(path),
                    hint="name another output for the job",
                )
    try:
        sums.unlink(missing_ok=True)
    except OSError as error:
        raise as_write_error(error, sums) from error


def checksums(results: Sequence[Result], folder: Path) -> str:
    """The checksums of the written files, as lines for ``sha256sum -c``, in order of the names.

    Reports are not included: they hold times, which differ between runs.
    """
    written = [path for r in results if r.outcome for path in r.outcome.written]
    named = sorted((path.relative_to(folder).as_posix(), path) for path in written)
    return "".join(f"{Digest(path).of(path)}  {name}\n" for name, path in named)


def _task(
    name: str,
    values: Mapping[str, Any],
    shared: Mapping[str, Any],
    folder: Path,
    kinds: Sequence[str],
    where: str,
    dry_run: bool,
) -> Task:
    check_known(values, (*JOB_KEYS, *setting_names()), where)
    if "model" not in values:
        raise UsageError("names no model", where=where, hint='model = "net.onnx"')
    model = Path(_text(values["model"], f"{where}, model"))
    require_file(model, f"{where}, model")
    name_in_folder = _text(values.get("output", default_target(model).name), f"{where}, output")
    path = Path(name_in_folder)
    require_file(path, f"{where}, output")
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(f"'{name_in_folder}' is outside of {folder}", where=f"{where}, output")
    own = entries({k: v for k, v in values.items() if k not in JOB_KEYS}, where)
    output = folder / path
    output = output.with_suffix(".plan.json") if dry_run else output
    reports = {kind: report_path(output.parent, output, kind) for kind in kinds}
    return Task(name, model, Settings(**overlaid(shared, own)), output, reports)


def _table(data: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    table = data.get(key, {})
    if not isinstance(table, Mapping):
        raise UsageError("is not a table", where=f"{where}, {key}")
    return table


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{value!r} is not text", where=where)
    if "\0" in value:
        raise UsageError(f"{value!r} holds a null byte", where=where)
    return value


def _reports(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not set(map(str, value)) <= set(SUFFIXES):
        raise UsageError(f"{value!r} is not a list of {', '.join(SUFFIXES)}", where=where)
    return tuple(value)
