"""Whole jobs as the command line and scripts ask for them: a file in, a file out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dacconv import pipeline, plans
from dacconv.config import Settings, parse_arguments, parse_shapes
from dacconv.errors import UsageError
from dacconv.files import Digest, write_text
from dacconv.forms import AUTO
from dacconv.gates import Gates, missed
from dacconv.models.base import LoadOptions, Model
from dacconv.pipeline import Conversion, check_target, default_target
from dacconv.policies import BUDGETS
from dacconv.progress import Progress, silent
from dacconv.report import Report, Verification
from dacconv.types import Plan
from dacconv.verification import verify, why_not

if TYPE_CHECKING:
    from dacconv.calibration.prepare import Calibrated
    from dacconv.tuning import Speeds, Timer

NO_SPLIT = Plan(())
"""The plan that splits nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a job did: its report, with the gates that it missed, and the files that it wrote."""

    report: Report
    written: tuple[Path, ...]


def load_options(settings: Settings) -> LoadOptions:
    """How the settings say that a checkpoint is opened."""
    return LoadOptions(
        input_shapes=parse_shapes(settings.input_shape),
        arch=settings.arch,
        arch_args=parse_arguments(settings.arch_arg),
        key=settings.key,
        trust_pickle=settings.trust_pickle,
        vouched=settings.layers,
    )


def open_with(path: Path, settings: Settings) -> Model:
    """Open a checkpoint as the settings say."""
    return pipeline.load(path, load_options(settings))


def calibrated_for(
    model: Model,
    settings: Settings,
    progress: Progress = silent,
    timer: Timer | None = None,
) -> tuple[Calibrated | None, str]:
    """The inputs to measure on that the settings ask for, and what they are in words.

    Raises:
        DacconvError: they cannot be had, or there is no plan of the kind that is asked for.
    """
    if settings.calibration != "none":
        # by kernels alone: what cannot be planned fails before the long work
        plan_for(model, settings, progress, timer=timer)
    return pipeline.calibrate(
        model,
        settings.calibration,
        options=None if settings.calibration == "none" else settings.input_options(),
        fuse=settings.fuse,
        kernel_scale=settings.kernel_scale,
        seed=settings.seed,
        device=settings.device,
        progress=progress,
    )


def plan_for(
    model: Model,
    settings: Settings,
    progress: Progress = silent,
    calibrated: Calibrated | None = None,
    timer: Timer | None = None,
) -> Plan:
    """The plan that the settings ask for: from a file, or made by a policy."""
    if settings.from_sweep is not None:
        return _plan_from_sweep(model, settings, timer)
    if settings.pick is not None:
        raise UsageError("--pick takes a point of a sweep", hint="name its results: --from-sweep")
    if settings.plan is not None:
        return _plan_from_file(model, settings, settings.plan, timer)
    return pipeline.plan(
        model,
        rank=settings.rank,
        ranks=settings.ranks,
        energy=settings.energy,
        energy_over=settings.energy_over,
        macs=settings.budget("macs"),
        params=settings.budget("params"),
        latency=settings.budget("latency"),
        form=settings.form,
        speeds=timer or _lookup(model, settings),
        calibrated=calibrated,
        first_k=settings.first_k,
        last_k=settings.last_k,
        layers=settings.layers,
        skip=settings.skip,
        allow_costlier=settings.allow_costlier,
        fuse=settings.fuse,
        kernel_scale=settings.kernel_scale,
        progress=progress,
    )


def decided_plan(
    model: Model,
    settings: Settings,
    progress: Progress = silent,
    calibrated: Calibrated | None = None,
    timer: Timer | None = None,
) -> Plan:
    """The plan that the settings ask for; where times are measured, with the network as a whole.

    What the table knows without measuring is tried beside it: layers are timed one by one, and
    what else the machine does may have come between.
    """
    plan = plan_for(model, settings, progress, calibrated, timer)
    if timer is None:
        return plan
    from dacconv.tuning.whole import fastest

    plans = [plan]
    if settings.latency is None:
        plans.append(plan_for(model, settings, progress, calibrated))

    def carried_out(plan: Plan) -> Model:  # the plain factors are as fast as any others
        return pipeline.convert(
            model, plan, fuse=settings.fuse, kernel_scale=settings.kernel_scale
        ).model

    progress("timing the network", 0, 1)
    return fastest(model, plans, timer, carried_out)


def _lookup(model: Model, settings: Settings) -> Speeds:
    return pipeline.lookup(model, target=settings.target, threads=settings.threads)


def _plan_from_file(model: Model, settings: Settings, path: str, timer: Timer | None) -> Plan:
    _require_alone(settings, "--plan")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"not readable: {error}", where=path) from error
    return pipeline.bind_plan(
        model,
        plans.plan_from_json(text, path),
        where=path,
        allow_costlier=settings.allow_costlier,
        fuse=settings.fuse,
        form=settings.form,
        speeds=timer or _lookup(model, settings),
    )


def _plan_from_sweep(model: Model, settings: Settings, timer: Timer | None) -> Plan:
    """The plan of the picked point, measured on this very model with these options."""
    from dacconv.sweeps.files import read_sweep
    from dacconv.sweeps.pick import pick

    _require_alone(settings, "--from-sweep")
    where = settings.from_sweep or ""
    if settings.pick is None:
        raise UsageError("which point?", where=where, hint="--pick 'macs<=0.5', or --pick knee")
    found = read_sweep(Path(where))
    if found.header.get("sha256") != Digest(model.path).of(*model.files):
        raise UsageError(
            f"these results are of another model ({found.header.get('source')})",
            where=where,
            hint="sweep this one, or take a point of another as a --plan",
        )
    measured = found.header.get("options") or {}
    here = {
        "fuse": settings.fuse,
        "kernel_scale": settings.kernel_scale,
        "calibrate": settings.calibration,
    }
    for name, value in here.items():
        if name in measured and measured[name] != value:
            raise UsageError(
                f"the sweep was made with {_option(name, measured[name])}, so its numbers do not "
                "hold here",
                where=where,
                hint=f"give {_option(name, measured[name])} as well",
            )
    return pipeline.bind_plan(
        model,
        pick(found, settings.pick).plan,
        where=where,
        allow_costlier=True,  # the point was measured as it is
        fuse=settings.fuse,
        form=settings.form,
        speeds=timer or _lookup(model, settings),
    )


def _require_alone(settings: Settings, option: str) -> None:
    """Raise UsageError where other options choose layers or ranks as well."""
    other = [
        name
        for name in (
            "rank",
            "ranks",
            "energy",
            "macs",
            "params",
            "latency",
            "first_k",
            "last_k",
            "layers",
            "skip",
        )
        if getattr(settings, name) not in (None, {}, ())
    ]
    if other:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in other)
        raise UsageError(f"{option} says it all; it excludes {options}")


def _option(name: str, value: object) -> str:
    """An option as it is typed."""
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{dashed}" if value else f"--no-{dashed}"
    return f"--{dashed} {value}"


def timer_for(model: Model, settings: Settings, progress: Progress = silent) -> Timer | None:
    """What times the layers, where the settings ask for it."""
    if not settings.tune and settings.latency is None:
        if settings.timings is not None:
            raise UsageError("goes with --tune or --latency", where="--timings")
        return None
    return pipeline.timer(
        model,
        target=settings.target,
        threads=settings.threads,
        device=settings.device,
        timings=settings.timings,
        fuse=settings.fuse,
        progress=progress,
    )


def convert_file(
    path: Path,
    settings: Settings,
    *,
    output: Path | None = None,
    force: bool = False,
    keep: bool = False,
    progress: Progress = silent,
) -> Outcome:
    """Convert a checkpoint and write the result, unless a gate was missed and not ``keep``.

    Raises:
        DacconvError: whatever is wrong with the input, the options or the target.
    """
    digest = Digest(path)
    gates = settings.gates()
    if gates.need_verification and not settings.verify:
        raise UsageError("--max-error and --min-agreement need the verification")
    model = open_with(path, settings)
    target = output or default_target(path)
    check_target(model, target, force=force)
    timer = timer_for(model, settings, progress)
    calibrated, told = calibrated_for(model, settings, progress, timer)
    plan = decided_plan(model, settings, progress, calibrated, timer)
    done = pipeline.convert(
        model,
        plan,
        calibrated=calibrated,
        fuse=settings.fuse,
        kernel_scale=settings.kernel_scale,
        options=settings.changed(),
        digest=digest,
        progress=progress,
    )
    report = _timed(_noted(done.report, told, settings), model, done.plan, timer)
    done = replace(done, report=report)
    done = _verified(model, done, settings, progress)
    return _saved(done, gates, target, force=force, keep=keep)


def dry_run(
    path: Path,
    settings: Settings,
    *,
    output: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Outcome:
    """The report of what a conversion would do, and its plan written to a file."""
    model = open_with(path, settings)
    target = output or path.with_suffix(".plan.json")
    if target.exists() and not force:
        raise UsageError("exists already", where=str(target), hint="--force overwrites it")
    timer = timer_for(model, settings, progress)
    calibrated, told = calibrated_for(model, settings, progress, timer)
    plan = decided_plan(model, settings, progress, calibrated, timer)
    report = pipeline.preview(model, plan, fuse=settings.fuse)
    report = _timed(_noted(report, told, settings), model, plan, timer)
    write_text(target, plans.plan_to_json(plan))
    return Outcome(report, (target,))


def fuse_file(
    path: Path,
    settings: Settings,
    *,
    output: Path | None = None,
    force: bool = False,
    keep: bool = False,
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
    check_target(model, target, force=force)
    done = pipeline.convert(model, NO_SPLIT, options=settings.changed(), progress=progress)
    done = _verified(model, done, settings, progress)
    gates = settings.gates()
    if gates.max_error is None and settings.verify and done.report.verification:
        gates = replace(gates, max_error=lossless_error(done.report.verification))
    return _saved(done, gates, target, force=force, keep=keep)


def lossless_error(check: Verification) -> float:
    """How far outputs may differ that are the same but for rounding."""
    half = any(output.dtype in ("float16", "bfloat16") for output in check.outputs)
    return 2e-2 if half else 1e-4


def compare_files(
    original: Path, converted: Path, settings: Settings, progress: Progress = silent
) -> tuple[Verification, tuple[str, ...]]:
    """Run two models side by side: the verification and the gates that it misses."""
    first = open_with(original, settings)
    second = open_with(converted, settings)
    check = verify(
        first,
        second,
        samples=settings.samples,
        seed=settings.seed,
        threads=settings.threads,
        progress=progress,
    )
    report = replace(pipeline.inspect(first), verification=check)
    return check, tuple(missed(report, replace(settings.gates(), min_saving=None)))


def _saved(done: Conversion, gates: Gates, target: Path, *, force: bool, keep: bool) -> Outcome:
    """What came of a conversion, written unless it misses a gate and is not to be kept."""
    report = replace(done.report, missed=tuple(missed(done.report, gates)))
    written = () if report.missed and not keep else done.save(target, force=force)
    return Outcome(report, written)


def inspect_file(path: Path, settings: Settings, progress: Progress = silent) -> Report:
    """The report of a model as it is; with ``tune`` what each rank would save, measured."""
    model = open_with(path, settings)
    report = pipeline.inspect(model)
    timer = timer_for(model, settings, progress)
    if timer is None:
        return report
    from dacconv.tuning.rows import rank_times

    layers = pipeline.survey(model)
    return replace(report, timings=rank_times(model, layers, timer, settings.form or AUTO))


def _timed(report: Report, model: Model, plan: Plan, timer: Timer | None) -> Report:
    """The report with what was measured of its layers."""
    if timer is None:
        return report
    from dacconv.tuning.rows import plan_times

    return replace(report, timings=plan_times(plan, pipeline.survey(model), timer))


def _noted(report: Report, told: str, settings: Settings) -> Report:
    """The report with why nothing was calibrated, and with the budget that was given up.

    The first where that was asked for or is the default; the second where measured times have
    taken layers out of the plan.
    """
    notes = list(report.notes)
    if report.calibration is None and settings.calibration != "none":
        notes.append(told)
    for name in BUDGETS:
        share = settings.budget(name)
        before, after = (getattr(cost, name) for cost in (report.before, report.after))
        if share is not None and after and before and after > share * before:
            why = ": --tune left alone what gets no faster" if settings.tune else ""
            left = f"{100 * after / before:.1f} % of the {name} are left, not {100 * share:.1f} %"
            notes.append(f"the budget is not kept, {left}{why}")
    return replace(report, notes=tuple(notes))


def _verified(model: Model, done: Conversion, settings: Settings, progress: Progress) -> Conversion:
    """The conversion with its verification, or with the reason why there is none."""
    if not settings.verify:
        return replace(done, report=replace(done.report, unverified="--no-verify was given"))
    if reason := why_not(model):
        if settings.gates().need_verification:
            raise UsageError(f"the gates need the model to run, but {reason}")
        return replace(done, report=replace(done.report, unverified=reason))
    check = verify(
        model,
        done.model,
        samples=settings.samples,
        seed=settings.seed,
        threads=settings.threads,
        progress=progress,
    )
    return replace(done, report=replace(done.report, verification=check))
