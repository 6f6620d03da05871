"""Which points of a sweep are worth having: the Pareto front and its knee."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dacconv.sweeps.results import PointResult, Quality

Cost = Callable[[PointResult], float | None]


def front(rows: Sequence[PointResult], cost: Cost, quality: Quality) -> tuple[PointResult, ...]:
    """The points that no other beats in cost without being worse, the cheapest first."""
    known = [
        (price, -worth, index)
        for index, row in enumerate(rows)
        if (price := cost(row)) is not None and (worth := quality.worth(row)) is not None
    ]
    found: list[PointResult] = []
    best = float("inf")
    for _, loss, index in sorted(known):
        if loss < best:
            found.append(rows[index])
            best = loss
    return tuple(found)


def knee(rows: Sequence[PointResult], cost: Cost, quality: Quality) -> PointResult | None:
    """The point of a front that is farthest from the chord between its ends.

    Both axes run from 0 to 1 over the front, so that units do not matter; this is the discrete
    curvature of Satopaa et al. 2011, "Finding a 'Kneedle' in a Haystack". Outputs that are wrong
    by more than their own size are all as bad as none. None where a front has no point between
    its ends, or all of them lie on the wrong side of the chord.
    """
    kept = front(rows, cost, quality)
    if len(kept) < 3:
        return None
    prices = [cost(row) or 0.0 for row in kept]
    worths = [quality.worth(row) or 0.0 for row in kept]
    if quality.name == "output_error":
        worths = [max(worth, -1.0) for worth in worths]
    wide, high = prices[-1] - prices[0], worths[-1] - worths[0]
    if not high:
        return None
    above = [
        (w - worths[0]) / high - (p - prices[0]) / wide for p, w in zip(prices, worths, strict=True)
    ]
    best = max(range(len(kept)), key=lambda index: above[index])
    return kept[best] if above[best] > 1e-9 else None
