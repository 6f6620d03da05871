"""Writing a converted model: what is verified is the file, read again, before it has its name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from dacconv.conversion.gates import Gates, missed
from dacconv.conversion.pipeline import Conversion, check_target
from dacconv.conversion.report import Report
from dacconv.conversion.verdict import lossless_error
from dacconv.conversion.verification import verify
from dacconv.conversion.weight_comparison import compare_weights
from dacconv.errors import DacconvError, UsageError
from dacconv.formats import open_model
from dacconv.formats.base import Model, Replacing
from dacconv.formats.inputs import reason_not_runnable
from dacconv.settings import Settings
from dacconv.support.files import publish, staging
from dacconv.support.progress import Progress


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a job did: its report, with the gates that it missed, and the files that it wrote.

    ``faulty`` is true where the file did not hold what was converted, and so was not kept.
    """

    report: Report
    written: tuple[Path, ...]
    faulty: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model is written.

    With ``force`` what is there is replaced; with ``keep`` a model is written although it misses
    a gate.
    """

    path: Path
    force: bool = False
    keep: bool = False


def open_with(path: Path, settings: Settings) -> Model:
    """Open a checkpoint as the settings say."""
    return open_model(path, settings.load_options)


def write_verified(
    original: Model,
    conversion: Conversion,
    settings: Settings,
    target: Target,
    progress: Progress,
    *,
    lossless: bool = False,
) -> Outcome:
    """Write a conversion, verify the file against the original, and only then give it its name.

    The file is written into a folder beside the target, opened from there with the settings that
    the original was opened with, and run beside the original. It takes its name if it misses no
    gate, or if it is to be kept all the same; a file that does not hold what was converted is
    never kept. With ``lossless`` the outputs must be the same but for rounding. Without the
    verification the file is only written.

    Raises:
        UsageError: the gates need a model that can be run; the target exists by now.
        WriteError: the operating system refuses to write.
    """
    report = conversion.report
    if not settings.verify:
        report = judged(original, conversion.model, report, settings, progress)
        write = target.keep or not report.missed
        if not write:
            return Outcome(report, ())
        written = conversion.save(target.path, force=target.force)
        return Outcome(replace(report, file_bytes=(sizes(original.files), sizes(written))), written)
    with staging(target.path) as folder:
        files = conversion.save(folder / target.path.name)
        reopened, fault = _reopened(conversion.model, files[0], settings)
        if reopened is None or fault:
            report = replace(report, unverified=fault, missed=(fault,))
            return Outcome(report, (), faulty=True)
        report = replace(report, file_bytes=(sizes(original.files), sizes(files)))
        report = judged(original, reopened, report, settings, progress, lossless=lossless)
        del reopened  # its file may be mapped, and is renamed now
        if report.missed and not target.keep:
            return Outcome(report, ())
        check_target(original, target.path, force=target.force)
        replaced = original.replaced_files(target.path) if isinstance(original, Replacing) else ()
        return Outcome(report, publish(files, target.path.parent, replaced))


def sizes(files: Iterable[Path]) -> int:
    """The bytes of some files together."""
    return sum(file.stat().st_size for file in files)


def check_verification(original: Model, settings: Settings) -> None:
    """Raise UsageError, before the work, where what the outputs are needed for cannot be done.

    A gate on the outputs, and the user's data, need a model that is run; the data must fit it.
    """
    gates, data = settings.gates.need_verification, settings.data
    if not gates and data is None:
        return
    if not settings.verify:
        needs = "--max-error and --min-agreement need" if gates else "--data needs"
        raise UsageError(f"{needs} the verification")
    if reason := reason_not_runnable(original):
        needs = "the gates need" if gates else "--data needs"
        raise UsageError(f"{needs} the model to run, but {reason}")
    if data is not None:
        from dacconv.calibration.inputs.user_data import feeds_maker, read_images

        options = settings.input_options
        feeds_maker(original, read_images(Path(data), original, options), options)


def judged(
    original: Model,
    converted: Model,
    report: Report,
    settings: Settings,
    progress: Progress,
    *,
    lossless: bool = False,
) -> Report:
    """The report with the verification of a converted model, and with the gates that it misses."""
    report = replace(report, path=str(original.path))
    reason = reason_not_runnable(original) if settings.verify else "--no-verify was given"
    if reason:
        report = replace(report, unverified=reason)
    else:
        check = verify(original, converted, settings.check_options, progress=progress)
        report = replace(report, verification=check)
    return replace(report, missed=tuple(missed(report, _gates(report, settings, lossless))))


def _reopened(converted: Model, path: Path, settings: Settings) -> tuple[Model | None, str]:
    """The model in the file at ``path``, and what is wrong with it, if anything is."""
    options = replace(settings.load_options, vouched=())
    try:
        reopened = open_model(path, options)
        problem = compare_weights(converted, reopened).problem
    except DacconvError as error:
        return None, f"the written file cannot be opened again: {error.what}"
    return reopened, problem and f"the written file does not hold what was converted: {problem}"


def _gates(report: Report, settings: Settings, lossless: bool) -> Gates:
    """The gates of the settings; a lossless conversion has one on its error in any case."""
    gates = settings.gates
    if lossless and gates.max_error is None and report.verification is not None:
        return replace(gates, max_error=lossless_error(report.verification.outputs))
    return gates
