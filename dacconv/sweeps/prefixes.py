"""Running many variants of one model; a prefix that several of them share is run once.

The choices for the layers, in order of execution, are the word of a variant. Variants whose words
have a common prefix compute the same values up to there. So the variants form a tree (a trie), and
each is run from the layer at which its word differs from the others. Where a word has no choices
after that layer, the original model runs the rest, for all such variants.
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
"""The choice for each layer, in order of execution; None for a layer that is not split."""
Outputs = list[dict[str, Array]]


@dataclass(frozen=True, slots=True, eq=False)
class Stops:
    """The nodes before which runs can stop: ``nodes[i]`` is the first conv of layer i.

    ``base`` is the model of which the variants are conversions.
    """

    base: Divisible
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Branch:
    """Variants with the same first ``depth`` choices, and the live values before the next layer."""

    members: list[int]
    depth: int
    state: Sequence[Feeds]


@dataclass(slots=True, eq=False)
class Trunk:
    """The live values of the original before layer ``depth``; the inputs at first."""

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
    """The index of every variant and its outputs for every batch.

    ``model(i)`` converts variant i. Without ``stops``, or where the runtime cannot run the model
    in parts, every variant is run from the start. Of those that are run in parts, ``at_once``
    are run at the same time with a thread each, which uses cores better for small networks. With
    a ``trunk`` from an earlier call on the same batches, the common prefix is not run again.
    """
    finished: set[int] = set()
    if stops is not None:
        try:
            start = trunk or Trunk(batches)
            for index, outputs in _in_parts(words, model, stops, start, batches, threads, at_once):
                finished.add(index)
                yield index, outputs
        except UnsupportedError:
            pass  # a model that cannot be run as a whole either raises below
    for index in range(len(words)):
        if index not in finished:
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
            variant, word = model(group[0]), words[group[0]]
            running.append((group, pool.submit(rest.finish, variant, word, depth, state)))
            while len(running) > at_once:  # the next variant is converted while these are run
                yield from _results(*running.popleft())
        while running:
            yield from _results(*running.popleft())


def _results(group: Sequence[int], future: Future[Outputs]) -> Iterator[tuple[int, Outputs]]:
    outputs = future.result()
    yield from ((index, outputs) for index in group)


def _leaves(
    words: Sequence[Word],
    model: Callable[[int], Model],
    stops: Stops,
    trunk: Trunk,
    batches: Sequence[Feeds],
    threads: int | None,
) -> Iterator[tuple[list[int], int, Sequence[Feeds]]]:
    """Groups of equal variants, the layer at which they differ from the others, the values there.

    The original counts as one of the others, so that a single variant is run in the same parts,
    with the same rounding, as among many.
    """
    original = len(words)
    words = [*words, (None,) * len(stops.nodes)]
    common = _common(words)
    fits = common is not None and common >= trunk.depth
    depth, state = (trunk.depth, trunk.state) if fits else (0, batches)
    waiting = [_Branch(list(range(len(words))), depth, state)]
    while waiting:
        branch = waiting.pop()
        members, depth, state = branch.members, branch.depth, branch.state
        del branch  # frees a state when its last branch is finished
        common = _common([words[i] for i in members])
        if common is None:
            if own := [index for index in members if index != original]:
                yield own, depth, state
            continue
        if common > depth:
            names = stops.base.live(stops.nodes[common])
            run = _divisible(model(members[0])).resume(state[0], names, threads=threads)
            state = [run(feeds) for feeds in state]
            if original in members:
                trunk.depth, trunk.state = common, state
        groups: dict[Hashable, list[int]] = {}
        for index in members:
            groups.setdefault(words[index][common], []).append(index)
        # leaves come first, so that few states are in memory at a time
        leaves = [g for g in groups.values() if _common([words[i] for i in g]) is None]
        for group in leaves:
            if own := [index for index in group if index != original]:
                yield own, common, state
        waiting += [_Branch(g, common, state) for g in groups.values() if g not in leaves]


def _common(words: Sequence[Word]) -> int | None:
    """The length of the common prefix of the words; None where they are equal."""
    first = words[0]
    for place in range(len(first)):
        if any(word[place] != first[place] for word in words[1:]):
            return place
    return None


class _Rest:
    """Runs variants from the layer at which they differ from the others to the end."""

    def __init__(self, stops: Stops, threads: int | None) -> None:
        self.stops, self.threads = stops, threads
        self._place = 0
        self._runner: Runner | None = None
        self._lock = Lock()

    def finish(self, model: Model, word: Word, depth: int, state: Sequence[Feeds]) -> Outputs:
        """The outputs of ``model``, run from ``state``, the live values before layer ``depth``."""
        after = depth + 1
        if after < len(word) and not any(word[after:]):
            names = self.stops.base.live(self.stops.nodes[after])
            run = _divisible(model).resume(state[0], names, threads=self.threads)
            middle = [run(feeds) for feeds in state]
            last = self._original(after, middle[0])
            return [last(feeds) for feeds in middle]
        if depth:
            run = _divisible(model).resume(state[0], threads=self.threads)
        else:
            run = model.runner(threads=self.threads)
        return [run(feeds) for feeds in state]

    def _original(self, place: int, feeds: Feeds) -> Runner:
        """The original from layer ``place`` on. Variants come layer by layer, so the last runner
        is cached."""
        with self._lock:
            if self._runner is None or self._place != place:
                self._runner = self.stops.base.resume(feeds, threads=self.threads)
                self._place = place
            return self._runner


def _divisible(model: Model) -> Divisible:
    if not isinstance(model, Divisible):
        raise UnsupportedError("a model of this format cannot be run in parts")
    return model
