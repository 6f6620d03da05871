"""Confidence intervals that assume nothing about how the values are spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Interval:
    """A median, and the two values that it lies between with at least ``confidence``.

    ``confidence`` is what the values really give: below what was asked for where there are
    too few of them.
    """

    median: float
    low: float
    high: float
    confidence: float


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median of what the values are drawn from, by order statistics.

    The interval from the k-th smallest to the k-th largest of n independent values covers the
    median with probability ``1 - 2 P(B <= k - 1)``, B binomial with n and 1/2, whatever the
    distribution (David and Nagaraja, Order Statistics, 3rd ed., section 7.1); k is the
    largest that gives ``confidence``. Five values or fewer cannot give 95 %.

    Raises:
        ValueError: no values.
    """
    ordered = sorted(values)
    n = len(ordered)
    if not ordered:
        raise ValueError("the median of nothing")
    k, tail, covered = 1, 2.0 ** (1 - n), max(0.0, 1 - 2.0 ** (1 - n))
    while k < (n + 1) // 2:
        tail += 2.0 ** (1 - n) * math.comb(n, k)
        if 1 - tail < confidence:
            break
        k, covered = k + 1, 1 - tail
    return Interval(median(ordered), ordered[k - 1], ordered[n - k], covered)
