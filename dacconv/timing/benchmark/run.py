"""Benchmarks of models side by side, in alternating rounds, each model in its own process."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median, quantiles

from dacconv.errors import UsageError
from dacconv.formats.base import LoadOptions
from dacconv.formats.timing import Profile, Setting
from dacconv.support.progress import Progress, silent
from dacconv.timing.benchmark.client import Turn, Worker
from dacconv.timing.benchmark.layers import layer_times
from dacconv.timing.benchmark.machine import machine, warnings
from dacconv.timing.benchmark.result import Benchmark, Case, LayerTimes, Memory, Timing
from dacconv.timing.benchmark.subjects import OpenModel, input_text, open_all, with_batch
from dacconv.timing.intervals import median_interval

ROUNDS, FEWEST_ROUNDS = 20, 6
"""Fewer than six rounds give no interval of 95 %."""
SECONDS = 20.0
TURN_SECONDS = 0.05
"""The least time that a model runs in a round."""
SHORT_SECONDS = 0.02
FRESH_TURNS = 5
"""The placement of a process in memory and of its threads on cores makes a network faster or slower
by a tenth as long as the process exists. So every round has new processes where time allows, and
always where all runs are shorter than ``SHORT_SECONDS``. They take at most so many turns."""
SETTLE_SECONDS = 0.003
"""A pause between turns: idle threads of torch's OpenMP occupy their cores for about that long."""
PROFILE_ROUNDS, PROFILE_RUNS, PROFILE_SECONDS = 5, 20, 3.0


@dataclass(frozen=True, slots=True)
class Procedure:
    """The procedure of a benchmark.

    Every combination of ``batches`` and ``threads`` is one case; without them the models run as
    their inputs are, with the threads that the runtime chooses. A case takes about ``seconds``,
    at most ``rounds`` rounds and at least six. ``layers`` adds the times by layer for the first
    case. ``device``, ``dtype`` and ``channels_last`` are for torch.
    """

    batches: Sequence[int] = ()
    threads: Sequence[int] = ()
    rounds: int = ROUNDS
    seconds: float = SECONDS
    layers: bool = False
    device: str = "cpu"
    dtype: str | None = None
    channels_last: bool = False
    seed: int = 0


def bench(
    paths: Sequence[Path],
    procedure: Procedure | None = None,
    options: LoadOptions | None = None,
    *,
    progress: Progress = silent,
) -> Benchmark:
    """Measure time, memory and size of models side by side, the first against the others.

    Raises:
        UsageError: an option is invalid, or does not fit a model.
        UnsupportedError: a model cannot be run: its process ended or did not answer.
    """
    procedure = procedure or Procedure()
    _check(procedure)
    facts = machine()
    models = open_all(list(paths), options or LoadOptions())
    plans = [
        ([with_batch(model, batch) for model in models] if batch else list(models), count)
        for batch, count in product(procedure.batches or (None,), procedure.threads or (None,))
    ]
    settings = [
        Setting(count, procedure.device, procedure.dtype, channels_last=procedure.channels_last)
        for _, count in plans
    ]
    cases = tuple(
        _case(subjects, setting, procedure, progress)
        for (subjects, _), setting in zip(plans, settings, strict=True)
    )
    table = None
    if procedure.layers:
        table = _layers(plans[0][0], settings[0], cases[0], procedure.seed, progress)
    return Benchmark(
        machine=facts,
        models=tuple(model.subject for model in models),
        device=procedure.device,
        dtype=procedure.dtype,
        channels_last=procedure.channels_last,
        seed=procedure.seed,
        cases=cases,
        layers=table,
        notes=tuple(warnings(facts, cases)),
    )


def _check(procedure: Procedure) -> None:
    rounds, seconds = procedure.rounds, procedure.seconds
    for name, values in (("--batch", procedure.batches), ("--threads", procedure.threads)):
        for value in values:
            if value < 1:
                raise UsageError(f"{value} is not a number above 0", where=name)
        if len(set(values)) != len(values):
            raise UsageError("names a number twice", where=name)
    if rounds < FEWEST_ROUNDS:
        raise UsageError(
            f"{rounds} rounds give no interval of 95 %: {FEWEST_ROUNDS} are the fewest",
            where="--rounds",
        )
    if not (seconds > 0 and math.isfinite(seconds)):
        raise UsageError(f"{seconds:g} is not a time above 0", where="--seconds")


def _case(
    models: Sequence[OpenModel],
    setting: Setting,
    procedure: Procedure,
    progress: Progress,
) -> Case:
    """Time all models under one setting, each in its own process, in alternating rounds."""
    rounds, seconds, seed = procedure.rounds, procedure.seconds, procedure.seed
    task = _task(models, setting)
    turns: list[list[Turn]] = [[] for _ in models]
    fresh = 0
    started = time.monotonic()
    with ExitStack() as stack:
        group = _Workers(stack.enter_context(_loaded(models, setting, seed)))
        starting = time.monotonic() - started
        for number in range(rounds):
            spent = time.monotonic() - started
            if number >= FEWEST_ROUNDS and spent * (number + 1) / number > seconds:
                break
            progress(task, number, rounds)
            if number == 1:
                is_short = all(of_model[0].median < SHORT_SECONDS for of_model in turns)
                time_limit = math.inf if is_short else seconds
                fresh = fresh_turns(starting, spent - starting, time_limit)
            if fresh:
                stack.close()
                group = _Workers(stack.enter_context(_loaded(models, setting, seed)))
            for index, turn in enumerate(group.round(number, fresh or 1)):
                turns[index].append(turn)
        progress(task, rounds, rounds)
        memories = [worker.memory() for worker in group.workers]
    timings = tuple(
        _timing(model.subject.name, turns[i], turns[0] if i else None, memories[i])
        for i, model in enumerate(models)
    )
    inputs = tuple(input_text(spec) for spec in models[0].inputs)
    return Case(_batch(models[0]), setting.threads, inputs, len(turns[0]), timings, fresh > 0)


def fresh_turns(starting: float, turn: float, seconds: float) -> int:
    """The number of turns of new processes in every round; 0 if there is no time to start them.

    The turns take about as long as starting the processes. ``starting`` and ``turn`` are the
    seconds of starting all of them and of one turn of each, ``seconds`` the time of the case.
    """
    turns = min(max(int(starting / turn), 1), FRESH_TURNS)
    return turns if FEWEST_ROUNDS * (starting + turns * turn) <= seconds else 0


class _Workers:
    """A worker for each model, after its first runs."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = workers
        self._runs = [_runs_in_a_turn(worker) for worker in workers]

    def round(self, number: int, passes: int) -> list[Turn]:
        """The turns of each model in one round of so many passes over all models."""
        turns: list[list[Turn]] = [[] for _ in self.workers]
        for step in range(passes):
            for index in _order(len(self.workers), number + step):
                time.sleep(SETTLE_SECONDS)
                turns[index].append(self.workers[index].run(TURN_SECONDS, self._runs[index]))
        return [_combined(several) for several in turns]


@contextmanager
def _loaded(
    models: Sequence[OpenModel], setting: Setting, seed: int, *, profile: bool = False
) -> Iterator[list[Worker]]:
    """A process for each model, with the model loaded."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(model.path)) for model in models]
        for worker, model in zip(workers, models, strict=True):
            worker.load(model.options, setting, model.inputs, seed, profile=profile)
        yield workers


def _combined(turns: Sequence[Turn]) -> Turn:
    """The turns of a model in a round as one turn with the median of their times."""
    return Turn(
        median(turn.median for turn in turns),
        sum(turn.runs for turn in turns),
        sum(turn.interrupted for turn in turns),
    )


def _order(count: int, turn: int) -> list[int]:
    """The order of the models in a turn: another one is first each time, and every second one is
    reversed."""
    shifted = [(index + turn // 2) % count for index in range(count)]
    return shifted[::-1] if turn % 2 else shifted


def _runs_in_a_turn(worker: Worker) -> int:
    """Warm up, and return the least number of runs in a turn."""
    return 3 if worker.run(TURN_SECONDS, 2).median < TURN_SECONDS else 1


def _timing(name: str, turns: list[Turn], first: list[Turn] | None, memory: Memory) -> Timing:
    times = [1e3 * turn.median for turn in turns]
    low, _, high = quantiles(times, n=4, method="inclusive")
    ratio = None
    if first is not None:
        ratio = median_interval([a.median / b.median for a, b in zip(first, turns, strict=True)])
    runs = sum(turn.runs for turn in turns)
    return Timing(
        model=name,
        ms=median_interval(times),
        first_quartile=low,
        third_quartile=high,
        runs=runs,
        interrupted=sum(turn.interrupted for turn in turns) / runs,
        per_round=tuple(times),
        memory=memory,
        ratio=ratio,
    )


def _layers(
    models: Sequence[OpenModel], setting: Setting, case: Case, seed: int, progress: Progress
) -> LayerTimes:
    """Profile the models in alternating rounds, each in a new process."""
    profiles: list[list[Profile]] = [[] for _ in models]
    with _loaded(models, setting, seed, profile=True) as workers:
        for number in range(PROFILE_ROUNDS):
            progress("timing layers", number, PROFILE_ROUNDS)
            for index in _order(len(models), number):
                affordable = 1e3 * PROFILE_SECONDS / case.timings[index].ms.median
                runs = max(3, min(PROFILE_RUNS, int(affordable)))
                profiles[index].append(workers[index].profile(runs))
    progress("timing layers", PROFILE_ROUNDS, PROFILE_ROUNDS)
    graphs = [model.model.graph() for model in models]
    best = [min(of, key=lambda profile: profile.ms) for of in profiles]
    return layer_times(best, graphs, case.batch, setting.threads)


def _batch(model: OpenModel) -> int:
    shape = model.inputs[0].shape if model.inputs else None
    return shape[0] or 1 if shape else 1


def _task(models: Sequence[OpenModel], setting: Setting) -> str:
    threads = "" if setting.threads is None else f", {setting.threads} threads"
    return f"timing, batch {_batch(models[0])}{threads}"
