"""Running many variants of one model, each prefix that several of them share once.

The layers that may be split, in order of execution, make a variant a word: what is done to
each. Words that begin alike are models that begin alike, so the variants are walked as a tree,
and a variant is run from where it parts from the others. Where nothing is done to any layer after
that one, the model as it is runs the rest for all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

from dacconv.errors import UnsupportedError
from dacconv.formats.base import Divisible, Feeds, Model, Runner
from dacconv.graph.types import Array

Word = Sequence[Hashable]
"""What is done to each layer, in order of execution."""
Outputs = list[dict[str, Array]]


@dataclass(frozen=True, slots=True, eq=False)
class Stops:
    """Where runs can stop: ``nodes[i]`` is the first conv of layer i.

    ``base`` is the model that the variants were made of.
    """

    base: Divisible
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Branch:
    """Variants alike in their first ``depth`` layers, and the live values before the next."""

    members: list[int]
    depth: int
    state: Sequence[Feeds]


@dataclass(slots=True, eq=False)
class Trunk:
    """How far the model as it is was run, and the live values there: at first the inputs."""

    state: Sequence[Feeds]
    depth: int = 0


def run_all(
    words: Sequence[Word],
    model: Callable[[int], Model],
    stops: Stops | None,
    batches: Sequence[Feeds],
    *,
    threads: int | None = None,
    at_once: int = 1,
    trunk: Trunk | None = None,
) -> Iterator[tuple[int, Outputs]]:
    """The outputs of every variant for every batch, variants with a common prefix together.

    ``model(i)`` makes variant i. Without ``stops``, or where the runtime cannot run the model
    in parts, every variant is run from the start. Of those that are run in parts ``at_once``
    are run beside each other, with a thread each: a small network uses cores better so. With a
    ``trunk`` from an earlier call on the same batches what both have in common is not run again.
    """
    done: set[int] = set()
    if stops is not None:
        try:
            start = trunk or Trunk(batches)
            for index, outputs in _in_parts(words, model, stops, start, batches, threads, at_once):
                done.add(index)
                yield index, outputs
        except UnsupportedError:
            pass  # what cannot be run whole either says so below
    for index in range(len(words)):
        if index not in done:
            runner = model(index).runner(threads=threads)
            yield index, [runner(feeds) for feeds in batches]


def _in_parts(
    words: Sequence[Word],
    model: Callable[[int], Model],
    stops: Stops,
    trunk: Trunk,
    batches: Sequence[Feeds],
    threads: int | None,
    at_once: int,
) -> Iterator[tuple[int, Outputs]]:
    rest = _Rest(stops, threads if at_once == 1 else 1)
    with ThreadPoolExecutor(at_once) as pool:
        running: deque[tuple[list[int], Future[Outputs]]] = deque()
        for group, depth, state in _leaves(words, model, stops, trunk, batches, threads):
            one, word = model(group[0]), words[group[0]]
            running.append((group, pool.submit(rest.finish, one, word, depth, state)))
            while len(running) > at_once:  # the next one is made while these are run
                yield from _arrived(*running.popleft())
        while running:
            yield from _arrived(*running.popleft())


def _arrived(group: Sequence[int], outputs: Future[Outputs]) -> Iterator[tuple[int, Outputs]]:
    found = outputs.result()
    yield from ((index, found) for index in group)


def _leaves(
    words: Sequence[Word],
    model: Callable[[int], Model],
    stops: Stops,
    trunk: Trunk,
    batches: Sequence[Feeds],
    threads: int | None,
) -> Iterator[tuple[list[int], int, Sequence[Feeds]]]:
    """Variants that are the same, where they part from the others, and the live values there.

    The model as it is counts among the others, so that a variant that is alone is run in the
    same parts, and to the same rounding, as among many.
    """
    as_is = len(words)
    words = [*words, (None,) * len(stops.nodes)]
    alike = _common(words)
    fits = alike is not None and alike >= trunk.depth
    depth, state = (trunk.depth, trunk.state) if fits else (0, batches)
    waiting = [_Branch(list(range(len(words))), depth, state)]
    while waiting:
        branch = waiting.pop()
        members, depth, state = branch.members, branch.depth, branch.state
        del branch  # a state goes when its last branch is done
        common = _common([words[i] for i in members])
        if common is None:
            if own := [index for index in members if index != as_is]:
                yield own, depth, state
            continue
        if common > depth:
            names = stops.base.live(stops.nodes[common])
            run = _divisible(model(members[0])).resume(state[0], names, threads=threads)
            state = [run(feeds) for feeds in state]
            if as_is in members:
                trunk.depth, trunk.state = common, state
        groups: dict[Hashable, list[int]] = {}
        for index in members:
            groups.setdefault(words[index][common], []).append(index)
        # what ends here comes first, so that few states wait at a time
        leaves = [g for g in groups.values() if _common([words[i] for i in g]) is None]
        for group in leaves:
            if own := [index for index in group if index != as_is]:
                yield own, common, state
        waiting += [_Branch(g, common, state) for g in groups.values() if g not in leaves]


def _common(words: Sequence[Word]) -> int | None:
    """The first place where words differ; None where they are the same."""
    first = words[0]
    for place in range(len(first)):
        if any(word[place] != first[place] for word in words[1:]):
            return place
    return None


class _Rest:
    """Runs variants from where they part from the others to the end."""

    def __init__(self, stops: Stops, threads: int | None) -> None:
        self.stops, self.threads = stops, threads
        self._place = 0
        self._runner: Runner | None = None
        self._lock = Lock()

    def finish(self, model: Model, word: Word, depth: int, state: Sequence[Feeds]) -> Outputs:
        """The outputs of ``model``, which goes on from ``state``, before layer ``depth``."""
        after = depth + 1
        if after < len(word) and not any(word[after:]):
            names = self.stops.base.live(self.stops.nodes[after])
            run = _divisible(model).resume(state[0], names, threads=self.threads)
            middle = [run(feeds) for feeds in state]
            last = self._as_it_is(after, middle[0])
            return [last(feeds) for feeds in middle]
        if depth:
            run = _divisible(model).resume(state[0], threads=self.threads)
        else:
            run = model.runner(threads=self.threads)
        return [run(feeds) for feeds in state]

    def _as_it_is(self, place: int, given: Feeds) -> Runner:
        """The model as it is from layer ``place`` on; variants come layer by layer, so one is
        kept."""
        with self._lock:
            if self._runner is None or self._place != place:
                self._runner = self.stops.base.resume(given, threads=self.threads)
                self._place = place
            return self._runner


def _divisible(model: Model) -> Divisible:
    if not isinstance(model, Divisible):
        raise UnsupportedError("a model of this format cannot be run in parts")
    return model
