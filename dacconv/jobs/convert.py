"""Whole jobs as the command line and scripts ask for them: a file in, a file out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dacconv.conversion import pipeline
from dacconv.conversion.gates import missed
from dacconv.conversion.pipeline import check_target, default_target
from dacconv.conversion.report import Report
from dacconv.conversion.verification import verify
from dacconv.decompositions.forms import AUTO
from dacconv.formats.base import Model
from dacconv.graph import plan_json
from dacconv.graph.findings import Verification
from dacconv.graph.types import Plan
from dacconv.jobs.decide import Decision, decide, timer_for
from dacconv.jobs.search import Inputs, best_saving, needs_search
from dacconv.jobs.what_if import answer, parse_question
from dacconv.jobs.write import (
    Outcome,
    Target,
    check_verification,
    judged,
    open_with,
    write_verified,
)
from dacconv.planning import BUDGETS
from dacconv.planning.plans import ANY_METHOD, methods_of
from dacconv.settings import Settings
from dacconv.support.files import Digest, write_text
from dacconv.support.outputs import Output, check_outputs
from dacconv.support.progress import Progress, silent

NO_SPLIT = Plan(())
"""The plan that splits nothing."""
DRY_RUN = "dry run: the model was converted in memory, and only the plan was written"


def convert_file(
    path: Path,
    settings: Settings,
    *,
    output: Path | None = None,
    force: bool = False,
    keep: bool = False,
    others: Sequence[Output] = (),
    progress: Progress = silent,
) -> Outcome:
    """Convert a checkpoint and write the result, unless a gate was missed and not ``keep``.

    ``others`` are files that the caller writes afterwards; they are checked before the work.

    Raises:
        DacconvError: whatever is wrong with the input, the options or the target.
    """
    digest = Digest(path)
    model = open_with(path, settings)
    check_verification(model, settings)
    target = output or default_target(path)
    more = [*others, *timings_output(settings)]
    check_target(model, target, force=force, others=more, inputs=input_files(settings))
    settings, conversion = convert_model(model, settings, digest, progress)
    return write_verified(model, conversion, settings, Target(target, force, keep), progress)


def dry_run(
    path: Path,
    settings: Settings,
    *,
    output: Path | None = None,
    force: bool = False,
    others: Sequence[Output] = (),
    progress: Progress = silent,
) -> Outcome:
    """The report of a conversion that is done and verified in memory; only its plan is written."""
    digest = Digest(path)
    model = open_with(path, settings)
    check_verification(model, settings)
    target = output or path.with_suffix(".plan.json")
    outputs = [Output(target, "-o"), *others, *timings_output(settings)]
    check_outputs(outputs, [*model.files, *input_files(settings)], force=force)
    settings, conversion = convert_model(model, settings, digest, progress)
    report = judged(model, conversion.model, conversion.report, settings, progress)
    write_text(target, plan_json.plan_to_json(conversion.plan))
    return Outcome(replace(report, notes=(*report.notes, DRY_RUN)), (target,))


def fuse_file(
    path: Path,
    settings: Settings,
    *,
    output: Path | None = None,
    force: bool = False,
    keep: bool = False,
    others: Sequence[Output] = (),
    progress: Progress = silent,
) -> Outcome:
    """Merge what can be merged without loss, and nothing else, and write the result.

    Raises:
        DacconvError: whatever is wrong with the input, the options or the target; nothing to
            merge; an output that is not the same.
    """
    model = open_with(path, settings)
    target = output or path.with_name(f"{path.stem}.fused{path.suffix}")
    pipeline.require_dataflow(model)
    check_verification(model, settings)
    inputs = input_files(settings)
    check_target(model, target, force=force, others=others, inputs=inputs)
    done = pipeline.convert(model, NO_SPLIT, recorded=settings.changed(), progress=progress)
    destination = Target(target, force, keep)
    return write_verified(model, done, settings, destination, progress, lossless=True)


def compare_files(
    original: Path,
    converted: Path,
    settings: Settings,
    *,
    others: Sequence[Output] = (),
    force: bool = False,
    progress: Progress = silent,
) -> tuple[Verification, tuple[str, ...]]:
    """Run two models side by side: the verification and the gates that it misses."""
    first = open_with(original, settings)
    second = open_with(converted, settings)
    inputs = [*first.files, *second.files, *input_files(settings)]
    check_outputs(others, inputs, force=force)
    check = verify(first, second, settings.check_options, progress=progress)
    report = replace(pipeline.inspect(first), verification=check)
    return check, tuple(missed(report, replace(settings.gates, min_saving=None)))


def inspect_file(
    path: Path,
    settings: Settings,
    *,
    others: Sequence[Output] = (),
    force: bool = False,
    progress: Progress = silent,
) -> Report:
    """The report of a model as it is; with ``tune`` the measured time of every layer and split.

    With ``what_if`` also what it would cost with another width or resolution.
    """
    question = parse_question(settings.what_if)
    model = open_with(path, settings)
    outputs = [*others, *timings_output(settings)]
    check_outputs(outputs, [*model.files, *input_files(settings)], force=force)
    report = pipeline.inspect(model)
    if question is not None:
        report = replace(report, what_if=answer(model, question))
    timer = timer_for(model, settings, progress)
    if timer is None:
        return report
    from dacconv.timing.rows import rank_times

    methods = methods_of(settings.method, budgeted=settings.method == ANY_METHOD)
    layers = pipeline.survey(model)
    form = settings.form or AUTO
    return replace(report, timings=rank_times(model, layers, methods, timer, form))


def input_files(settings: Settings) -> list[Path]:
    """The files that the settings name, which a command reads besides the model."""
    names = [settings.plan, settings.from_sweep, settings.calibrate, settings.data]
    names.append((settings.arch or "").rpartition(":")[0])
    paths = [Path(name) for name in names if name]
    folders = [path for path in paths if path.is_dir()]
    inside = [file for folder in folders for file in folder.iterdir()]
    return [path for path in (*paths, *inside) if path.is_file()]


def timings_output(settings: Settings) -> list[Output]:
    """The file of measured times, which is read and added to."""
    if settings.timings is None:
        return []
    return [Output(Path(settings.timings), "--timings", continued=True)]


def convert_model(
    model: Model, settings: Settings, digest: Digest | None = None, progress: Progress = silent
) -> tuple[Settings, pipeline.Conversion]:
    """The conversion in memory that the settings ask for, and the settings that give it."""

    def carry_out(
        settings: Settings, inputs: Inputs | None, progress: Progress
    ) -> pipeline.Conversion:
        return _carry_out(model, settings, digest, progress, inputs)

    if needs_search(settings):
        return best_saving(model, settings, carry_out, progress)
    return settings, _carry_out(model, settings, digest, progress)


def _carry_out(
    model: Model,
    settings: Settings,
    digest: Digest | None,
    progress: Progress,
    inputs: Inputs | None = None,
) -> pipeline.Conversion:
    """Decide on a plan and carry it out in memory."""
    decision = decide(model, settings, progress, inputs)
    conversion = pipeline.convert(
        model,
        decision.plan,
        settings.split_options,
        calibrated=decision.calibrated,
        inputs=decision.ranges,
        recorded=settings.changed(),
        digest=digest,
        progress=progress,
    )
    report = _decided(conversion.report, model, settings, decision)
    return replace(conversion, report=report)


def _decided(report: Report, model: Model, settings: Settings, decision: Decision) -> Report:
    """The report with what it was decided by, and with what was measured of its layers."""
    report = _noted(report, decision.inputs, settings)
    if decision.timer is None:
        return report
    from dacconv.timing.rows import plan_times

    layers = pipeline.survey(model)
    return replace(report, timings=plan_times(decision.plan, layers, decision.timer))


def _noted(report: Report, told: str, settings: Settings) -> Report:
    """The report with why nothing was calibrated, and with the budget that was given up.

    The first where that was asked for or is the default; the second where measured times have
    taken layers out of the plan.
    """
    notes = list(report.notes)
    if (
        report.calibration is None
        and settings.calibration != "none"
        and (report.converted or report.precision is None)
    ):
        notes.append(told)
    for name in BUDGETS:
        share = settings.budget(name)
        before, after = (getattr(cost, name) for cost in (report.before, report.after))
        if share is not None and after and before and after > share * before:
            why = ": --tune left alone what gets no faster" if settings.tune else ""
            left = f"{100 * after / before:.1f} % of the {name} are left, not {100 * share:.1f} %"
            notes.append(f"the budget is not kept, {left}{why}")
    return replace(report, notes=tuple(notes))
