"""Confidence intervals that do not assume a distribution of the values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Interval:
    """A median, and the interval that contains it with probability ``confidence``.

    ``confidence`` is the probability that the number of values allows: less than was requested
    where there are too few of them.
    """

    median: float
    low: float
    high: float
    confidence: float


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median of the distribution of the values, by order statistics.

    The interval from the k-th smallest to the k-th largest of n independent values contains the
    median with probability ``1 - 2 P(B <= k - 1)``, B binomial with n and 1/2, whatever the
    distribution (David and Nagaraja, Order Statistics, 3rd ed., section 7.1). k is the largest
    that gives ``confidence``, and 1 where none does: five values or fewer cannot give 95 %.

    Raises:
        ValueError: there are no values.
    """
    from scipy.stats import binom

    ordered = sorted(values)
    n = len(ordered)
    if not ordered:
        raise ValueError("the median of nothing")
    k = min(max(int(binom.ppf((1 - confidence) / 2, n, 0.5)), 1), (n + 1) // 2)
    covered = max(0.0, 1 - 2 * float(binom.cdf(k - 1, n, 0.5)))
    return Interval(median(ordered), ordered[k - 1], ordered[n - k], covered)
