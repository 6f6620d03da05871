"""Numbers as a person writes them."""

from __future__ import annotations

import math


def three_digits(value: float) -> str:
    """Three significant digits: ``0.0123``, ``12.3``, and ``1,180`` where others write 1.18e+03.

    Numbers below 0.0001 keep their exponent, as ``2.43e-07``.
    """
    if math.isfinite(value) and 1000 <= abs(value) < 1e15:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"
