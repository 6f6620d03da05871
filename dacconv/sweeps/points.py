"""The points of a sweep: the plans that are tried, with readable names.

The paper's experiments (Li et al., arXiv 1812.08374, section 4) are ``single`` (one layer at a
time at each rank) and ``first-k`` and ``last-k`` (the first or last k layers at one rank).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dacconv.decompositions import Method
from dacconv.errors import UsageError
from dacconv.graph.types import Choice, Layer, Plan
from dacconv.planning.base import first_method, same_rank
from dacconv.planning.plans import ANY_METHOD, methods_of, settle

DAC = "dac"
SINGLE, FIRST, LAST, UNIFORM, BUDGET = "single", "first-k", "last-k", "uniform", "budget"
MODES = (SINGLE, FIRST, LAST, UNIFORM, BUDGET)


@dataclass(frozen=True, slots=True)
class Point:
    """One plan to try; ``label`` is unique in a sweep.

    The plan follows from ``layer`` (mode single), the number ``k`` of layers (first-k, last-k),
    ``rank`` and ``budget`` (a share of the MACs); None where the mode does not use it.
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
    """The modes to try, and their ranks or budgets.

    ``method`` names the methods; see ``RankOptions``. A budget chooses among them for each layer,
    and the other modes use the first one that can split the layer.
    """

    modes: tuple[str, ...]
    ranks: tuple[int, ...] = ()
    budgets: tuple[float, ...] = ()
    method: str | None = None

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that split layers: by default those of a budget where it is the only mode."""
        budgeted = set(self.modes) == {BUDGET} or self.method == ANY_METHOD
        return methods_of(self.method, budgeted=budgeted)

    @property
    def calibration(self) -> str:
        """The default calibration: ``auto`` with budgets, else ``none``."""
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
    execution. ``single`` tries every rank up to a layer's full rank, regardless of the cost; the
    other modes do what ``convert`` does with the same ranks.

    Raises:
        UsageError: an unknown mode, or one without its ranks or budgets.
    """
    grid_points: list[Point] = []
    for mode in grid.modes:
        if mode not in MODES:
            raise UsageError(f"'{mode}' is not one of {', '.join(MODES)}", where="--mode")
        if mode == BUDGET:
            if not grid.budgets:
                raise UsageError("no budgets", where="--budgets", hint="as in 0.3,0.4,0.5")
            grid_points += [
                Point(f"budget@{share:g}", mode, budget_plan(share), budget=share)
                for share in grid.budgets
            ]
            continue
        if not grid.ranks:
            raise UsageError("no ranks", where="--ranks", hint="as in 1-5 or 1,2,4")
        grid_points += _by_rank(mode, grid, layers, selected, allow_costlier=allow_costlier)
    return tuple(grid_points)


def _by_rank(
    mode: str,
    grid: Grid,
    layers: Sequence[Layer],
    selected: Sequence[Layer],
    *,
    allow_costlier: bool,
) -> list[Point]:
    ranks, count = grid.ranks, len(selected)
    methods = {layer.name: first_method(layer, grid.methods) for layer in selected}
    prefix = "" if grid.method in (None, DAC) else f"{grid.method}:"

    def plan(part: Sequence[Layer], rank: int, costlier: bool) -> Plan:
        splits = [(layer.name, methods[layer.name]) for layer in part]
        choices = [Choice(name, method.name, same_rank(method, rank)) for name, method in splits]
        return settle(layers, choices, allow_costlier=costlier)

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
            if rank <= max(methods[layer.name].full_rank(layer.geometry))
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
    """``1-5`` or ``1,2,4-6`` as whole numbers in ascending order.

    Raises:
        UsageError: ``text`` is not a list of ranks.
    """
    ranks: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        try:
            first, last = int(low), int(high if dash else low)
        except ValueError:
            first, last = 0, 0
        if not 1 <= first <= last:
            raise UsageError(
                f"'{text}' is not a list of ranks", where="--ranks", hint="as in 1-5 or 1,2,4"
            )
        ranks.update(range(first, last + 1))
    return tuple(sorted(ranks))
