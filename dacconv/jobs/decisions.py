"""What is to be done to a model: the settings, the calibration and the measured times decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacconv.conversion import pipeline
from dacconv.conversion.pipeline import Conversion
from dacconv.errors import UsageError
from dacconv.formats.base import Model
from dacconv.graph.types import Plan
from dacconv.planning import plans
from dacconv.settings import Settings
from dacconv.support.files import Digest
from dacconv.support.progress import Progress, silent

if TYPE_CHECKING:
    from dacconv.calibration.prepare import Calibrated
    from dacconv.timing import Timer


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
        _formed(model, settings, plan_for(model, settings, progress, timer=timer), timer)
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
    """The plan that the settings ask for, from a file or made by a policy, its forms left open."""
    if settings.from_sweep is not None:
        return _plan_from_sweep(model, settings)
    if settings.pick is not None:
        raise UsageError("--pick takes a point of a sweep", hint="name its results: --from-sweep")
    if settings.plan is not None:
        return _plan_from_file(model, settings, settings.plan)
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
        speeds=timer,
        open_forms=True,
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


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What is to be done to a model, and what it was decided by.

    ``told`` says in words what ``calibrated`` measures on, or why there is nothing.
    """

    plan: Plan
    timer: Timer | None
    calibrated: Calibrated | None
    told: str


def decide(model: Model, settings: Settings, progress: Progress = silent) -> Decision:
    """The plan that the settings ask for; where times are measured, with the network as a whole.

    The predicted plan is tried beside it: layers are timed one by one, and
    what else the machine does may have come between.
    """
    timer = timer_for(model, settings, progress)
    calibrated, told = calibrated_for(model, settings, progress, timer)
    made = plan_for(model, settings, progress, calibrated, timer)
    plan = _formed(model, settings, made, timer)
    if timer is not None:
        from dacconv.timing.whole import fastest

        @lru_cache(maxsize=2)  # what was the fastest is timed again
        def carried_out(plan: Plan) -> Model:  # the plain factors are as fast as any others
            return carry_out(model, plan, settings).model

        plans = [plan]
        if settings.latency is None:
            plans.append(_formed(model, settings, made, None))
        progress("timing the network", 0, 1)
        plan = fastest(model, plans, timer, carried_out)
    return Decision(plan, timer, calibrated, told)


def carry_out(
    model: Model,
    plan: Plan,
    settings: Settings,
    progress: Progress = silent,
    *,
    calibrated: Calibrated | None = None,
    options: Mapping[str, Any] | None = None,
    digest: Digest | None = None,
) -> Conversion:
    """The conversion by a plan, in the manner of the settings; ``options`` are what it records."""
    return pipeline.convert(
        model,
        plan,
        fuse=settings.fuse,
        kernel_scale=settings.kernel_scale,
        calibrated=calibrated,
        options=options,
        digest=digest,
        progress=progress,
    )


def _formed(model: Model, settings: Settings, made: Plan, timer: Timer | None) -> Plan:
    """The plan with the forms that it leaves open, measured or else predicted."""
    speeds = timer or pipeline.lookup(model, target=settings.target, threads=settings.threads)
    rows = pipeline.survey(model, fuse=settings.fuse)
    return pipeline.with_forms(model, made, rows, settings.form, speeds)


def _plan_from_file(model: Model, settings: Settings, path: str) -> Plan:
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
        open_forms=True,
    )


def _plan_from_sweep(model: Model, settings: Settings) -> Plan:
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
        open_forms=True,
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
