"""One option per layer, least damage, total cost within a budget.

The exact solution keeps every state (cost, damage) that no other one beats on both counts,
layer after layer. Where there are too many states, costs are rounded up to a grid, which
keeps the budget and may cost a little damage; the gap to the Lagrangian bound is then told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STATES = 200_000
"""States kept per layer; beyond this the costs are rounded to a grid."""


@dataclass(frozen=True, slots=True)
class Option:
    """What one choice for a layer costs, and the damage that it does."""

    cost: int
    damage: float


@dataclass(frozen=True, slots=True)
class Packing:
    """The index of the option taken for each layer; ``gap`` is 0 for an exact solution.

    ``gap`` bounds how much more damage it does than the best possible.
    """

    picks: tuple[int, ...]
    cost: int
    damage: float
    gap: float


def pack(layers: Sequence[Sequence[Option]], budget: int) -> Packing | None:
    """The packing of least damage whose cost is at most ``budget``; None where there is none."""
    if sum(min(o.cost for o in options) for options in layers) > budget:
        return None
    costs: NDArray[np.int64] = np.zeros(1, np.int64)
    damages: NDArray[np.float64] = np.zeros(1)
    trail: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    least = np.cumsum([min(o.cost for o in options) for options in reversed(layers)])[::-1]
    rest = [*map(int, least[1:]), 0]
    rounded = False
    for options, needed in zip(layers, rest, strict=True):
        cost = np.array([o.cost for o in options], np.int64)
        damage = np.array([o.damage for o in options])
        all_costs = (costs[:, None] + cost).ravel()
        all_damages = (damages[:, None] + damage).ravel()
        keep = _frontier(all_costs, all_damages, budget - needed)
        if len(keep) > STATES:
            keep, rounded = _thinned(keep, all_costs, budget), True
        costs, damages = all_costs[keep], all_damages[keep]
        trail.append((keep // len(options), keep % len(options)))
    state = len(costs) - 1  # the frontier runs from cheap to harmless
    best, picks = state, []
    for parents, choices in reversed(trail):
        picks.append(int(choices[state]))
        state = int(parents[state])
    total = float(damages[best])
    gap = max(0.0, total - lower_bound(layers, budget)) if rounded else 0.0
    return Packing(tuple(reversed(picks)), int(costs[best]), total, gap)


def lower_bound(layers: Sequence[Sequence[Option]], budget: int) -> float:
    """The greatest Lagrangian bound found: no packing within the budget does less damage."""
    best = sum(min(o.damage for o in options) for options in layers)
    low, high = 0.0, 1.0
    span = max((o.cost for options in layers for o in options), default=1) or 1
    while _dual(layers, budget, high / span)[1] > budget and high < 1e18:
        high *= 4
    for _ in range(60):
        middle = (low + high) / 2
        value, cost = _dual(layers, budget, middle / span)
        best = max(best, value)
        low, high = (middle, high) if cost > budget else (low, middle)
    return best


def _dual(layers: Sequence[Sequence[Option]], budget: int, price: float) -> tuple[float, int]:
    value, cost = -price * budget, 0
    for options in layers:
        pick = min(options, key=lambda o: (o.damage + price * o.cost, o.cost))
        value += pick.damage + price * pick.cost
        cost += pick.cost
    return value, cost


def _frontier(
    costs: NDArray[np.int64], damages: NDArray[np.float64], limit: int
) -> NDArray[np.int64]:
    """The indices of the states within ``limit`` that no other beats, from cheap to costly."""
    order = np.lexsort((damages, costs))
    order = order[costs[order] <= limit]
    sorted_damages = damages[order]
    before = np.minimum.accumulate(np.concatenate([[np.inf], sorted_damages[:-1]]))
    return np.asarray(order[sorted_damages < before])


def _thinned(keep: NDArray[np.int64], costs: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """Of the states in one cell of a grid of costs, the least harmful one (the last)."""
    cells = costs[keep] * STATES // max(budget, 1)
    last = np.append(cells[1:] != cells[:-1], True)
    last[0] = True
    return np.asarray(keep[last])
