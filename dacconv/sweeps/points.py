"""The points of a sweep: which plans are tried, under names that a person can read.

The paper's experiments (Li et al., arXiv 1812.08374, section 4) are ``single`` (one layer at a
time at each rank) and ``first-k`` and ``last-k`` (the first or last k layers at one rank).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dacconv.decompositions import METHODS
from dacconv.errors import UsageError
from dacconv.graph.types import Choice, Layer, Plan
from dacconv.planning.base import same_rank
from dacconv.planning.plans import settle

DAC = "dac"
SINGLE, FIRST, LAST, UNIFORM, BUDGET = "single", "first-k", "last-k", "uniform", "budget"
MODES = (SINGLE, FIRST, LAST, UNIFORM, BUDGET)


@dataclass(frozen=True, slots=True)
class Point:
    """One plan to try. ``layer``, ``k``, ``rank`` and ``budget`` say how it came about.

    ``label`` is unique in a sweep; ``k`` counts layers, ``budget`` is a share of the MACs.
    """

    label: str
    mode: str
    plan: Plan
    layer: str | None = None
    k: int | None = None
    rank: int | None = None
    budget: float | None = None


@dataclass(frozen=True, slots=True)
class Grid:
    """What is tried: the modes, and the ranks or budgets of each; ``method`` splits the layers."""

    modes: tuple[str, ...]
    ranks: tuple[int, ...] = ()
    budgets: tuple[float, ...] = ()
    method: str = DAC

    @property
    def calibration(self) -> str:
        """How to calibrate where the user does not say: ``auto`` with budgets, else ``none``."""
        return "auto" if BUDGET in self.modes else "none"


def points(
    grid: Grid,
    layers: Sequence[Layer],
    selected: Sequence[Layer],
    budget_plan: Callable[[float], Plan],
    *,
    allow_costlier: bool,
) -> tuple[Point, ...]:
    """Every point of the grid, mode after mode.

    ``layers`` are all layers of the model, ``selected`` those that may be split, in order of
    execution. ``single`` tries every rank up to a layer's full rank, whatever it costs; the
    other modes do what ``convert`` does with the same ranks.

    Raises:
        UsageError: an unknown mode, or one without its ranks or budgets.
    """
    found: list[Point] = []
    for mode in grid.modes:
        if mode not in MODES:
            raise UsageError(f"'{mode}' is not one of {', '.join(MODES)}", where="--mode")
        if mode == BUDGET:
            if not grid.budgets:
                raise UsageError("no budgets given", where="--budgets", hint="as in 0.3,0.4,0.5")
            found += [
                Point(f"budget@{share:g}", mode, budget_plan(share), budget=share)
                for share in grid.budgets
            ]
            continue
        if not grid.ranks:
            raise UsageError("no ranks given", where="--ranks", hint="as in 1-5 or 1,2,4")
        found += _by_rank(mode, grid, layers, selected, allow_costlier=allow_costlier)
    return tuple(found)


def _by_rank(
    mode: str,
    grid: Grid,
    layers: Sequence[Layer],
    selected: Sequence[Layer],
    *,
    allow_costlier: bool,
) -> list[Point]:
    method, ranks, count = METHODS[grid.method], grid.ranks, len(selected)
    prefix = "" if grid.method == DAC else f"{grid.method}:"

    def plan(chosen: Sequence[Layer], rank: int, costlier: bool) -> Plan:
        wanted = [Choice(layer.name, method.name, same_rank(method, rank)) for layer in chosen]
        return settle(layers, wanted, allow_costlier=costlier)

    if mode == SINGLE:
        return [
            Point(
                f"{layer.name}@{prefix}{rank}",
                mode,
                plan([layer], rank, True),
                layer.name,
                rank=rank,
            )
            for layer in selected
            for rank in ranks
            if rank <= max(method.full_rank(layer.geometry))
        ]
    if mode == UNIFORM:
        return [
            Point(f"uniform@{prefix}{rank}", mode, plan(selected, rank, allow_costlier), rank=rank)
            for rank in ranks
        ]
    name = "first" if mode == FIRST else "last"
    return [
        Point(f"{name}-{k}@{prefix}{rank}", mode, plan(part, rank, allow_costlier), k=k, rank=rank)
        for rank in ranks
        for k in range(1, count + 1)
        for part in [selected[:k] if mode == FIRST else selected[count - k :]]
    ]


def parse_ranks(text: str) -> tuple[int, ...]:
    """``1-5`` or ``1,2,4-6`` as whole numbers in order; UsageError for what is neither."""
    found: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        try:
            first, last = int(low), int(high if dash else low)
        except ValueError:
            first, last = 0, 0
        if not 1 <= first <= last:
            raise UsageError(
                f"'{text}' is no list of ranks", where="--ranks", hint="as in 1-5 or 1,2,4"
            )
        found.update(range(first, last + 1))
    return tuple(sorted(found))
