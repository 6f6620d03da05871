"""Measuring points: every conversion of an opened model against the original."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from dacconv.calibration.inputs.user_data import UserData
from dacconv.conversion import pipeline
from dacconv.conversion.check_inputs import CheckInputs, model_inputs
from dacconv.conversion.verification import CheckOptions, side_by_side
from dacconv.formats.base import Model
from dacconv.formats.inputs import count_samples, reason_not_runnable, seeded_inputs
from dacconv.graph.cost import Cost
from dacconv.graph.types import Plan
from dacconv.planning.spectra import SplitOptions
from dacconv.support.machine import cores
from dacconv.support.progress import Progress, silent
from dacconv.sweeps import data as labelled_data
from dacconv.sweeps.judges import Judge, SameOutputs, Tally, largest_input, passes, same_outputs
from dacconv.sweeps.points import Point
from dacconv.sweeps.prefixes import Trunk, run_all
from dacconv.sweeps.results import ORIGINAL, PointResult
from dacconv.sweeps.tasks import Task, load_task, run_task
from dacconv.sweeps.variants import Variants

if TYPE_CHECKING:
    from dacconv.calibration.inputs.pixels import InputOptions
    from dacconv.calibration.prepare import Calibrated, CalibrationOptions

SAMPLES = 32
SWEEP_CHECK, AS_TRAINED = CheckOptions(samples=SAMPLES), SplitOptions()


@dataclass(frozen=True, slots=True)
class Setup:
    """The measures of each point, and their inputs.

    ``task`` is the user's function or ``FILE.py:FUNCTION``; ``data`` are labelled images.
    ``threads`` is the number of threads of the runtime in each process.
    """

    check: CheckOptions = SWEEP_CHECK
    split: SplitOptions = AS_TRAINED
    calibration: CalibrationOptions | None = None
    threads: int | None = None
    bench: bool = False
    task: Task | str | None = None
    data: UserData | None = None

    @property
    def calibrate(self) -> str:
        """The source of the inputs that points are calibrated on, or ``none``."""
        return "none" if self.calibration is None else self.calibration.source

    @property
    def input_options(self) -> InputOptions:
        """The user's options about the model's input."""
        from dacconv.calibration.inputs.pixels import InputOptions

        return InputOptions() if self.calibration is None else self.calibration.input


@dataclass(frozen=True, eq=False)
class Bench:
    """A model, and everything needed to measure its conversions, computed once."""

    model: Model
    setup: Setup
    progress: Progress = silent
    _conversions: dict[Point, Model] = field(default_factory=dict)
    _trunks: dict[tuple[int, int], Trunk] = field(default_factory=dict)

    @cached_property
    def unrun(self) -> str | None:
        """The reason why the model is not run; None where it is."""
        return reason_not_runnable(self.model)

    @cached_property
    def calibrated(self) -> Calibrated | None:
        """The inputs that points are calibrated on; None without calibration."""
        return self._calibration[0]

    @property
    def description(self) -> str:
        """The inputs that the points are measured on, and the runtime, as text."""
        if self.unrun:
            return f"not run: {self.unrun}"
        same, *more = self.judges
        first = ", ".join(
            f"{name} {'x'.join(map(str, a.shape[1:]))} {a.dtype}"
            for name, a in same.batches[0].items()
        )
        text = f"{count_samples(same.batches)} {self.inputs.kind} ({first}), {self.inputs.family}"
        if more and self.setup.data is not None:
            text += f", {count_samples(more[0].batches)} images of {self.setup.data.name}"
        if self.setup.calibrate != "none":
            text += f"; {self._calibration[1]}"
        return f"{text}; {self.model.runtime}"

    @cached_property
    def _calibration(self) -> tuple[Calibrated | None, str]:
        setup = self.setup
        if setup.calibration is None:
            return None, "no calibration: weights only"
        return pipeline.calibrate(self.model, setup.calibration, setup.split, self.progress)

    @cached_property
    def variants(self) -> Variants:
        """The model's conversions."""
        setup = self.setup
        return Variants(self.model, setup.split, self.calibrated)

    @cached_property
    def inputs(self) -> CheckInputs:
        """The inputs that outputs are compared on, as a conversion is verified on them."""
        setup, model = self.setup, self.model
        runner = model.runner(threads=setup.threads)
        samples, seed = setup.check.samples or SAMPLES, setup.check.seed
        return next(model_inputs(model, runner, samples, seed, setup.input_options))

    @cached_property
    def judges(self) -> tuple[Judge, ...]:
        """The judges that compare outputs with a reference."""
        if self.unrun:
            return ()
        setup, model = self.setup, self.model
        runner = model.runner(threads=setup.threads)
        same = same_outputs(runner, self.inputs.batches, self.largest)
        if setup.data is None:
            return (same,)
        options = setup.input_options
        return (same, labelled_data.judge(model, runner, setup.data, options, self.largest))

    def original(self) -> PointResult:
        """The row of the unconverted model."""
        tallies = [judge.tally() for judge in self.judges]
        for tally, judge in zip(tallies, self.judges, strict=True):
            if isinstance(judge, SameOutputs):
                tally.add(0, judge.expected)
            else:
                runner = self.model.runner(threads=self.setup.threads)
                tally.add(0, [runner(feeds) for feeds in judge.batches])
        point = Point(ORIGINAL, ORIGINAL, Plan(()))
        self._conversions[point] = self.model
        return self._row(point, pipeline.inspect(self.model).before, tallies)

    def measure(
        self, points: Sequence[Point], *, at_once: int | None = None
    ) -> Iterator[PointResult]:
        """A row for each point, in the order in which they are finished.

        Points with a common prefix of choices share its computation. ``at_once`` points are run
        at the same time: by default one per core, or one if the setup has a number of threads or
        asks for times.
        """
        at_once = at_once or (1 if self.setup.bench or self.setup.threads else cores())
        tallies = [[judge.tally() for judge in self.judges] for _ in points]
        if not self.judges:
            for point in points:
                yield self._row(point, self.variants.cost(point.plan), ())
        for number, judge in enumerate(self.judges):
            slices = passes(judge.batches, self.largest)
            for part in slices:
                last = judge is self.judges[-1] and part is slices[-1]
                trunk = self._trunks.get((number, part.start)) or Trunk(judge.batches[part])
                self._trunks.clear()  # the memory is for one
                self._trunks[number, part.start] = trunk
                results = run_all(
                    [self.variants.word(point.plan) for point in points],
                    lambda index: self._equivalent(points[index]),
                    self.variants.stops,
                    judge.batches[part],
                    threads=self.setup.threads,
                    at_once=at_once,
                    trunk=trunk,
                )
                for index, outputs in results:
                    tallies[index][number].add(part.start, outputs)
                    if last:
                        point = points[index]
                        yield self._row(point, self.variants.cost(point.plan), tallies[index])

    def _row(self, point: Point, cost: Cost, tallies: Sequence[Tally]) -> PointResult:
        """The measures of the tallies, and those of the model as a whole."""
        measures = {name: value for tally in tallies for name, value in tally.measures().items()}
        errors = self.variants.kernel_errors(point.plan)
        setup, task, latency = self.setup, dict[str, float | None](), None
        if setup.task is not None and not self.unrun:
            call = load_task(setup.task) if isinstance(setup.task, str) else setup.task
            task = run_task(call, self._converted(point), point.label, setup.threads)
        if setup.bench and not self.unrun:
            pair = [m.runner(threads=setup.threads) for m in (self.model, self._converted(point))]
            feeds = seeded_inputs(self.model.inputs(), 1, setup.check.seed)[0]
            latency = side_by_side(pair[0], pair[1], feeds)
        return PointResult(
            label=point.label,
            mode=point.mode,
            choices=point.plan.choices,
            layer=point.layer,
            k=point.k,
            rank=point.rank,
            budget=point.budget,
            macs=cost.macs,
            params=cost.params,
            kernel_error=math.sqrt(sum(e**2 for e in errors) / len(errors)) if errors else 0.0,
            output_error=measures.pop("output_error", None),
            agreement=measures.pop("agreement", None),
            task=task | measures,
            latency=latency,
        )

    def _converted(self, point: Point) -> Model:
        """The conversion of a point; the last one is cached."""
        if point not in self._conversions:
            self._conversions.clear()
            self._conversions[point] = self.variants.convert(point.plan)
        return self._conversions[point]

    def _equivalent(self, point: Point) -> Model:
        """A model with the outputs of the conversion of a point."""
        if point in self._conversions:
            return self._conversions[point]
        return self.variants.equivalent(point.plan)

    @cached_property
    def largest(self) -> int:
        """The bytes of the largest input of a layer, for one sample."""
        return largest_input(self.model)
