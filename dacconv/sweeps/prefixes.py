"""Running many variants of one model, each prefix that several of them share once.

The layers that may be split, in order of execution, make a variant a word: what is done to
each. Words that begin alike are models that begin alike, so the variants are walked as a tree,
and a variant is run from where it parts from the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from dacconv.errors import UnsupportedError
from dacconv.models.base import Divisible, Feeds, Model
from dacconv.types import Array

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


def run_all(
    words: Sequence[Word],
    model: Callable[[int], Model],
    stops: Stops | None,
    batches: Sequence[Feeds],
    *,
    threads: int | None = None,
    at_once: int = 1,
) -> Iterator[tuple[int, Outputs]]:
    """The outputs of every variant for every batch, variants with a common prefix together.

    ``model(i)`` makes variant i. Without ``stops``, or where the runtime cannot run the model
    in parts, every variant is run from the start. Of those that are run in parts ``at_once``
    are run beside each other, with a thread each: a small network uses cores better so.
    """
    done: set[int] = set()
    if stops is not None:
        try:
            for index, outputs in _in_parts(words, model, stops, batches, threads, at_once):
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
    batches: Sequence[Feeds],
    threads: int | None,
    at_once: int,
) -> Iterator[tuple[int, Outputs]]:
    with ThreadPoolExecutor(at_once) as pool:
        running: deque[tuple[list[int], Future[Outputs]]] = deque()
        for group, depth, state in _leaves(words, model, stops, batches, threads):
            alone = threads if at_once == 1 else 1
            one = model(group[0])
            running.append((group, pool.submit(_finish, one, depth, state, alone)))
            while len(running) >= max(at_once, 2):
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
    batches: Sequence[Feeds],
    threads: int | None,
) -> Iterator[tuple[list[int], int, Sequence[Feeds]]]:
    """Variants that are the same, where they part from the others, and the live values there.

    The model as it is counts among the others, so that a variant that is alone is run in the
    same parts, and to the same rounding, as among many.
    """
    as_is = len(words)
    words = [*words, (None,) * len(stops.nodes)]
    waiting = [_Branch(list(range(len(words))), 0, batches)]
    while waiting:
        branch = waiting.pop()
        members, depth, state = branch.members, branch.depth, branch.state
        del branch  # a state goes when its last branch is done
        common = _common([words[i] for i in members])
        if common is None:
            if alike := [index for index in members if index != as_is]:
                yield alike, depth, state
            continue
        if common > depth:
            names = stops.base.live(stops.nodes[common])
            run = _divisible(model(members[0])).resume(state[0], names, threads=threads)
            state = [run(feeds) for feeds in state]
        groups: dict[Hashable, list[int]] = {}
        for index in members:
            groups.setdefault(words[index][common], []).append(index)
        # what ends here comes first, so that few states wait at a time
        leaves = [g for g in groups.values() if _common([words[i] for i in g]) is None]
        for group in leaves:
            if alike := [index for index in group if index != as_is]:
                yield alike, common, state
        waiting += [_Branch(g, common, state) for g in groups.values() if g not in leaves]


def _common(words: Sequence[Word]) -> int | None:
    """The first place where words differ; None where they are the same."""
    first = words[0]
    for place in range(len(first)):
        if any(word[place] != first[place] for word in words[1:]):
            return place
    return None


def _finish(model: Model, depth: int, state: Sequence[Feeds], threads: int | None) -> Outputs:
    if depth:
        run = _divisible(model).resume(state[0], threads=threads)
    else:
        run = model.runner(threads=threads)
    return [run(feeds) for feeds in state]


def _divisible(model: Model) -> Divisible:
    if not isinstance(model, Divisible):
        raise UnsupportedError("a model of this format cannot be run in parts")
    return model
