"""The largest saving that reaches a goal, where the user names neither a rank nor a budget.

Budgets of MACs are tried by bisection, each carried out in memory and verified: first without
calibration, which is fast, then as a budget is carried out by default, which is better, and for as
long as there is time. The settings of the best one are those of an ordinary command.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from dacconv.calibration.prepare import Calibrated
from dacconv.conversion import pipeline
from dacconv.conversion.pipeline import Conversion
from dacconv.conversion.report import Report
from dacconv.conversion.verdict import speed_change, verdict_on
from dacconv.conversion.verification import verify
from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.base import Model
from dacconv.formats.inputs import reason_not_runnable
from dacconv.graph.findings import Search, Trial, Verification
from dacconv.graph.types import Plan
from dacconv.settings import Settings
from dacconv.support.parsing import parse_share
from dacconv.support.progress import Progress

GOALS = ("--target-accuracy", "--max-drop")
SECONDS, SECONDS_WITH_DATA = 60.0, 600.0
"""How long is searched by default: for a usable network, and for an accuracy on the user's data."""
LEAST = 0.1
"""The smallest share of the MACs that is tried."""
STEP, STEP_WITH_DATA = 0.1, 0.025
"""Shares that are nearer to each other than this are not told apart."""

Inputs = tuple[Calibrated | None, str]
CarryOut = Callable[[Settings, Inputs | None, Progress], Conversion]
"""Converts a model as the settings say, calibrated on inputs that are prepared (None: prepare)."""


class OutOfTimeError(BaseException):
    """Raised by the progress of a search when its time is up; no handler of errors catches it."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a conversion has to keep; ``text`` says it, ``step`` is how finely it is searched."""

    text: str
    step: float
    seconds: float
    accuracy: float | None = None
    drop: float | None = None

    def reached(self, check: Verification) -> bool:
        """Whether a verified conversion is good enough; also not measurably slower."""
        if (speed_change(check.latency) or 1) < 1:
            return False
        if self.accuracy is None and self.drop is None:
            return verdict_on(check).level in ("equal", "usable")
        before, after = check.top1 or (1.0, 0.0)
        return after >= (self.accuracy or 0) and before - after <= (
            1.0 if self.drop is None else self.drop
        )


def needs_search(settings: Settings) -> bool:
    """Whether the settings leave it to a search how much is saved.

    A precision alone does not: it splits nothing.

    Raises:
        UsageError: an accuracy is to be kept, and ranks or a budget are given as well.
    """
    chosen = settings.chosen_by("ranks")
    others = [option for option in chosen if option not in GOALS]
    if others and len(others) < len(chosen):
        raise UsageError(
            f"{' and '.join(set(chosen) - set(others))} searches for a budget; "
            f"it excludes {', '.join(others)}"
        )
    alone = settings.precision is not None and not chosen
    return not settings.pick and not others and not alone


def goal_of(settings: Settings) -> Goal:
    """The goal of a search; UsageError for values that make no sense, or where data is missing."""
    target, drop = settings.target_accuracy, settings.max_drop
    seconds = settings.seconds
    if seconds is not None and not seconds > 0:
        raise UsageError(f"{seconds:g} is not a time above 0", where="--seconds")
    if target is None and drop is None:
        return Goal("a network that is usable and not slower", STEP, seconds or SECONDS)
    if settings.data is None:
        option = "--target-accuracy" if target is not None else "--max-drop"
        raise UsageError(
            "needs labelled images", where=option, hint="--data images.npz, or a folder per class"
        )
    words = []
    accuracy = None if target is None else percent(target, "--target-accuracy")
    points = None if drop is None else percent(drop, "--max-drop", points=True)
    if accuracy is not None:
        words.append(f"a top-1 of at least {100 * accuracy:g} %")
    if points is not None:
        words.append(f"a top-1 of at most {100 * points:g} points less")
    text = f"{' and '.join(words)}, and not slower"
    return Goal(text, STEP_WITH_DATA, seconds or SECONDS_WITH_DATA, accuracy, points)


def percent(value: str | float, option: str, *, points: bool = False) -> float:
    """``93``, ``93%`` or ``0.93`` as 0.93; with ``points`` ``0.5`` as 0.005.

    Raises:
        UsageError: the value is none of these.
    """
    text = str(value).strip().removesuffix("%").strip()
    try:
        number = float(text)
    except ValueError as error:
        raise UsageError(f"'{value}' is not a percentage", where=option) from error
    if points or number > 1 or str(value).strip().endswith("%"):
        number /= 100
    return parse_share(number, option)


def best_saving(
    model: Model, settings: Settings, carry_out: CarryOut, progress: Progress
) -> tuple[Settings, Conversion]:
    """The conversion with the largest saving that reaches the goal, and the settings that give it.

    Where no saving reaches it, what can be merged without loss.

    Raises:
        UsageError: the model cannot be verified, or its MACs are not known.
        UnsupportedError: not even the original reaches the goal, or nothing can be merged either.
    """
    goal = goal_of(settings)
    _require_verifiable(model, settings)
    search = _Bisection(model, settings, goal, carry_out, progress)
    try:
        search.run()
    except OutOfTimeError:
        search.in_time = False
    seconds = time.monotonic() - search.started
    summary = Search(goal.text, tuple(search.trials), seconds, search.in_time)
    if search.best is None:
        return settings, _without_loss(model, settings, summary)
    chosen, conversion = search.best
    return chosen, replace(conversion, report=replace(conversion.report, search=summary))


class _Bisection:
    """Tries budgets between the least one that is known to do and the largest that is not."""

    def __init__(
        self, model: Model, settings: Settings, goal: Goal, carry_out: CarryOut, show: Progress
    ) -> None:
        self.model, self.goal = model, goal
        self.settings = replace(settings, target_accuracy=None, max_drop=None, seconds=None)
        self.started = time.monotonic()
        self.trials: list[Trial] = []
        self.best: tuple[Settings, Conversion] | None = None
        self.in_time = True
        self._carry_out, self._show = carry_out, show

    def run(self) -> None:
        """Search with each kind of calibration in turn, from the best share so far."""
        given = self.settings.calibrate
        share = 1.0
        for source in (given,) if given is not None else ("none", None):
            base = replace(self.settings, calibrate=source)
            inputs: Inputs | None = None
            if source != "none":
                options = replace(base, calibrate=source or "auto").calibration_options
                inputs = pipeline.calibrate(self.model, options, base.split_options, self._progress)
                if inputs[0] is None and share < 1:
                    return  # the same as without calibration
            share = self._narrow(base, inputs, share)

    def _narrow(self, base: Settings, inputs: Inputs | None, good: float) -> float:
        """The smallest share that reaches the goal; ``good`` does."""
        step = self.goal.step
        bad = LEAST - step
        while good - bad > 1.5 * step:
            middle = good + (bad - good) / (3 if good < 1 and inputs else 2)
            share = round(round(middle / step) * step, 3)
            share = min(max(share, bad + step), good - step)
            if self._reaches(replace(base, macs=f"{share:g}"), inputs):
                good = share
            else:
                bad = share
        return good

    def _reaches(self, settings: Settings, inputs: Inputs | None) -> bool:
        """Carry out one budget and verify it; the first that reaches the goal, or a better one."""
        options = _options(settings)
        try:
            conversion = self._carry_out(settings, inputs, self._progress)
        except UsageError as error:  # the budget is out of reach
            self.trials.append(Trial(options, None, None, "", error.what, False))
            return False
        check = verify(
            self.model, conversion.model, settings.check_options, progress=self._progress
        )
        self._require_reachable(check)
        verdict = verdict_on(check)
        reached = self.goal.reached(check)
        saving = conversion.report.saving() or 0.0
        left = 1 - saving
        self.trials.append(
            Trial(options, left, check.latency.speedup, verdict.level, verdict.reason, reached)
        )
        if reached and self._is_better(conversion.report):
            self.best = settings, conversion
        return reached

    def _is_better(self, report: Report) -> bool:
        best = self.best[1].report.saving() if self.best else None
        return best is None or (report.saving() or 0.0) > best

    def _require_reachable(self, check: Verification) -> None:
        """Raise UnsupportedError where the original itself does not reach the goal."""
        target = self.goal.accuracy
        if check.top1 is None and (target is not None or self.goal.drop is not None):
            raise UsageError(
                "the images have no labels, or the model gives no classes",
                where="--data",
                hint="an .npz with images and labels, or a folder with a folder for each class",
            )
        if target is not None and check.top1 is not None and check.top1[0] < target:
            raise UnsupportedError(
                f"the original itself has a top-1 of {check.top1[0]:.1%} on {check.kind}",
                where=str(self.model.path),
                hint=f"--target-accuracy {100 * check.top1[0] - 0.5:.1f} is half a point below",
            )

    def _progress(self, task: str, done: int, total: int) -> None:
        """Show the progress; OutOfTimeError when the time is up."""
        if time.monotonic() - self.started > self.goal.seconds:
            raise OutOfTimeError
        self._show(f"{task} (budget {len(self.trials) + 1})", done, total)


def _options(settings: Settings) -> str:
    """The options of a trial, as they are typed."""
    calibrate = f" --calibrate {settings.calibrate}" if settings.calibrate else ""
    return f"--macs {settings.macs}{calibrate}"


def _require_verifiable(model: Model, settings: Settings) -> None:
    """Raise UsageError where it cannot be told what a budget does to the model."""
    reason = reason_not_runnable(model)
    if not settings.verify:
        reason = "--no-verify was given"
    elif reason is None and pipeline.inspect(model).before.macs is None:
        reason = "its MACs are not known"
    if reason is not None:
        raise UsageError(
            f"one way to choose ranks is needed, none given; none can be searched for: {reason}",
            where=str(model.path),
            hint="--rank R, --ranks NAME=R,..., --energy 0.95, --macs 0.45, --params 0.5, "
            "--latency 0.6, or --plan FILE",
        )


def _without_loss(model: Model, settings: Settings, summary: Search) -> Conversion:
    """What can be merged without loss; UnsupportedError where that is nothing."""
    if settings.fuse and model.has_dataflow:
        recorded = replace(settings, target_accuracy=None, max_drop=None).changed()
        conversion = pipeline.convert(model, Plan(()), recorded=recorded)
        if conversion.report.fused:
            return replace(conversion, report=replace(conversion.report, search=summary))
    tried = f"{len(summary.trials)} budgets were tried"
    raise UnsupportedError(
        f"no saving gives {summary.goal}, and nothing can be merged without loss ({tried})",
        where=str(model.path),
        hint="--macs 0.8 --keep shows what a small saving does; --seconds searches for longer",
    )
