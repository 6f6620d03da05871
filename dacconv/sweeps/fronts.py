"""The Pareto front of the points of a sweep, and its knee."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dacconv.sweeps.results import PointResult, Quality

Cost = Callable[[PointResult], float | None]


def front(rows: Sequence[PointResult], cost: Cost, quality: Quality) -> tuple[PointResult, ...]:
    """The Pareto front: the points than which no cheaper one is as good, the cheapest first."""
    measured = [
        (price, -worth, index)
        for index, row in enumerate(rows)
        if (price := cost(row)) is not None and (worth := quality.worth(row)) is not None
    ]
    points: list[PointResult] = []
    best = float("inf")
    for _, loss, index in sorted(measured):
        if loss < best:
            points.append(rows[index])
            best = loss
    return tuple(points)


def knee(rows: Sequence[PointResult], cost: Cost, quality: Quality) -> PointResult | None:
    """The point of a front that is farthest from the chord between its ends.

    Both axes run from 0 to 1 over the front, so that units do not matter; this is the discrete
    curvature of Satopaa et al. 2011, "Finding a 'Kneedle' in a Haystack". Relative output errors
    above 1 count as 1. None where a front has no point between its ends, or all of them lie on
    the wrong side of the chord.
    """
    points = front(rows, cost, quality)
    if len(points) < 3:
        return None
    prices = [cost(row) or 0.0 for row in points]
    worths = [quality.worth(row) or 0.0 for row in points]
    if quality.name == "output_error":
        worths = [max(worth, -1.0) for worth in worths]
    wide, high = prices[-1] - prices[0], worths[-1] - worths[0]
    if not high:
        return None
    above = [
        (w - worths[0]) / high - (p - prices[0]) / wide for p, w in zip(prices, worths, strict=True)
    ]
    best = max(range(len(points)), key=lambda index: above[index])
    return points[best] if above[best] > 1e-9 else None
