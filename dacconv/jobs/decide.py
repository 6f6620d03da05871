"""What a job does to a model: its settings, the calibration and measured times decide."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from dacconv.conversion import pipeline
from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.base import Model
from dacconv.graph.precision import AUTO, INT8
from dacconv.graph.types import Plan
from dacconv.planning import Damage, plans
from dacconv.settings import Settings, option_text
from dacconv.support.files import Digest
from dacconv.support.progress import Progress, silent

if TYPE_CHECKING:
    from dacconv.calibration.prepare import Calibrated
    from dacconv.conversion.range_inputs import RangeInputs
    from dacconv.timing import Timer

SAME_AS_SWEEP = ("fuse", "kernel_scale", "calibrate")
"""Settings that a point of a sweep was measured with, and that hold for it alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What is to be done to a model, and the evidence for it.

    ``inputs`` says in words what ``calibrated`` measures on, or why there is nothing.
    ``ranges`` are the inputs that a plan with int8 measures ranges on.
    """

    plan: Plan
    timer: Timer | None
    calibrated: Calibrated | None
    inputs: str
    ranges: RangeInputs | None = None


def decide(
    model: Model,
    settings: Settings,
    progress: Progress = silent,
    prepared: tuple[Calibrated | None, str] | None = None,
) -> Decision:
    """The plan that the settings ask for; with measured times also by the network as a whole.

    ``prepared`` are the inputs to calibrate on, where there are some already.

    Layers are timed one by one, and other work of the machine may have come between. So the plan
    that is predicted without measuring is tried beside the measured one.
    """
    split = settings.split_options
    timer = timer_for(model, settings, progress)
    calibrated, inputs = prepared or calibrate(model, settings, progress, timer)
    chosen = choose(model, settings, progress, calibrated, timer)
    plan = _with_forms(model, settings, chosen, timer)
    if timer is not None:
        from dacconv.timing.whole import fastest

        @lru_cache(maxsize=2)  # the fastest so far is timed again
        def converted(plan: Plan) -> Model:  # plain factors are as fast as any others
            return pipeline.convert(model, plan, split).model

        candidates = [plan]
        if settings.latency is None:
            candidates.append(_with_forms(model, settings, chosen, None))
        progress("timing the network", 0, 1)
        plan = fastest(model, candidates, timer, converted)
    plan = replace(plan, precision=chosen.precision)
    ranges = inputs_for_ranges(model, settings, plan, calibrated, progress)
    return Decision(plan, timer, calibrated, inputs, ranges)


def inputs_for_ranges(
    model: Model,
    settings: Settings,
    plan: Plan,
    calibrated: Calibrated | None,
    progress: Progress = silent,
) -> RangeInputs | None:
    """The inputs that a plan's int8 measures ranges on; None for a plan without int8.

    Those of the calibration, else those that ``--calibrate`` names, by default drawn images
    (also with ``none``, which is about the layers that are split).
    """
    precision = plan.precision
    if precision is None or not precision.may_be_int8:
        return None
    from dacconv.conversion.range_inputs import of_calibration, range_inputs

    if reason := model.precision_refusal(INT8):
        if precision.default == AUTO:
            return None
        raise UnsupportedError(reason, where=str(model.path))
    if calibrated is not None:
        return of_calibration(calibrated.inputs)
    source = settings.calibrate if settings.calibrate not in (None, "none") else "synthetic"
    return range_inputs(model, replace(settings.calibration_options, source=source), progress)


def calibrate(
    model: Model, settings: Settings, progress: Progress = silent, timer: Timer | None = None
) -> tuple[Calibrated | None, str]:
    """The inputs to measure on that the settings ask for, and in words what they are.

    Raises:
        DacconvError: they cannot be had, or there is no plan of the kind that is asked for.
    """
    if settings.calibration == "none" or _only_precision(settings):
        return None, "no calibration: weights only"
    # an impossible plan fails before the long work; no kernel is decomposed for a budget here
    trial = choose(model, settings, progress, timer=timer, damage=lambda layer, choice: 0.0)
    _with_forms(model, settings, trial, timer)
    split = settings.split_options
    return pipeline.calibrate(model, settings.calibration_options, split, progress)


def choose(
    model: Model,
    settings: Settings,
    progress: Progress = silent,
    calibrated: Calibrated | None = None,
    timer: Timer | None = None,
    damage: Damage | None = None,
) -> Plan:
    """The plan that the settings ask for, from a file or by a policy, its forms left open.

    A budget minimises ``damage`` if it is given.
    """
    precision = settings.plan_precision
    if settings.from_sweep is not None:
        plan = _plan_from_sweep(model, settings, settings.from_sweep)
        return replace(plan, precision=precision)
    if settings.pick is not None:
        raise UsageError("--pick takes a point of a sweep", hint="name its results: --from-sweep")
    if settings.plan is not None:
        plan = _plan_from_file(model, settings, settings.plan)
        if precision is not None and plan.precision is not None:
            raise UsageError("the plan has a precision already", where="--precision")
        return plan if precision is None else replace(plan, precision=precision)
    if _only_precision(settings):
        return _precision_alone(model, settings)
    plan = pipeline.choose(
        model,
        settings.rank_options,
        settings.selection,
        settings.split_options,
        calibrated=calibrated,
        speeds=timer,
        damage=damage,
        progress=progress,
    )
    return replace(plan, precision=precision)


def _only_precision(settings: Settings) -> bool:
    """Whether the settings ask for a precision and for no split."""
    return settings.precision is not None and not settings.chosen_by("ranks")


def _precision_alone(model: Model, settings: Settings) -> Plan:
    """The plan that splits nothing."""
    names = ("first_k", "last_k", "layers", "skip", "method", "form", "tune")
    others = [option_text(n) for n in names if getattr(settings, n) != getattr(Settings(), n)]
    if others:
        raise UsageError(
            f"{', '.join(others)} {'goes' if len(others) == 1 else 'go'} with a split",
            where="--precision",
            hint="choose ranks as well (--macs 0.5), or name layers: --precision int8,conv1=fp32",
        )
    pipeline.require_floating(model)
    return Plan((), precision=settings.plan_precision)


def timer_for(model: Model, settings: Settings, progress: Progress = silent) -> Timer | None:
    """What times the layers, where the settings ask for it."""
    options = settings.timing_options
    if not options.tune:
        return None
    return pipeline.timer(model, options, fuse=settings.fuse, progress=progress)


def _with_forms(model: Model, settings: Settings, plan: Plan, timer: Timer | None) -> Plan:
    """The plan with the forms that it leaves open, measured or else predicted."""
    speeds = timer or pipeline.predicted_speeds(model, settings.timing_options)
    return pipeline.with_forms(model, plan, settings.split_options, speeds)


def _plan_from_file(model: Model, settings: Settings, path: str) -> Plan:
    _require_alone(settings, "plan")
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
    )


def _plan_from_sweep(model: Model, settings: Settings, where: str) -> Plan:
    """The plan of the point that is picked, measured on this very model with these options."""
    from dacconv.sweeps.files import read_sweep
    from dacconv.sweeps.pick import pick

    _require_alone(settings, "from_sweep")
    if settings.pick is None:
        raise UsageError("which point?", where=where, hint="--pick 'macs<=0.5', or --pick knee")
    sweep = read_sweep(Path(where))
    if sweep.header.get("sha256") != Digest(model.path).of(*model.files):
        raise UsageError(
            f"these results are of another model ({sweep.header.get('source')})",
            where=where,
            hint="sweep this one, or take a point of another as a --plan",
        )
    measured = sweep.header.get("options") or {}
    for name in SAME_AS_SWEEP:
        value = settings.calibration if name == "calibrate" else getattr(settings, name)
        if name in measured and measured[name] != value:
            text = _typed(name, measured[name])
            raise UsageError(
                f"the sweep was run with {text}, so its numbers do not hold here",
                where=where,
                hint=f"give {text} as well",
            )
    return pipeline.bind_plan(
        model,
        pick(sweep, settings.pick).plan,
        where=where,
        allow_costlier=True,  # the point was measured as it is
        fuse=settings.fuse,
    )


def _require_alone(settings: Settings, name: str) -> None:
    """Raise UsageError where other options choose layers or ranks as well."""
    own = option_text(name)
    others = [text for text in settings.chosen_by("ranks", "layers") if text != own]
    others += [option_text(n) for n in ("layers", "skip") if getattr(settings, n)]
    if others:
        raise UsageError(f"{own} says it all; it excludes {', '.join(others)}")


def _typed(name: str, value: object) -> str:
    """An option and its value as they are typed."""
    if isinstance(value, bool):
        return option_text(name) if value else option_text(f"no_{name}")
    return f"{option_text(name)} {value}"
