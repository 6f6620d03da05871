"""Outputs of two models on the same inputs, compared as the runs come in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dacconv.errors import UnsupportedError
from dacconv.graph.findings import OutputCheck
from dacconv.graph.types import Array

ONE_CLASS = 0.9
"""Where the original gives one class for a larger share of the inputs, agreement says little."""


class Comparison:
    """Every output of two models, compared as the runs come in."""

    def __init__(self) -> None:
        self._outputs: dict[str, _OutputSums] = {}

    def add(self, expected: Mapping[str, Array], actual: Mapping[str, Array]) -> None:
        """Add what both models returned for the same inputs.

        Raises:
            UnsupportedError: the models have different numbers of outputs.
        """
        if len(expected) != len(actual):
            raise UnsupportedError(
                f"the models have {len(expected)} and {len(actual)} outputs",
                hint="both must come from the same network",
            )
        for (name, a), b in zip(expected.items(), actual.values(), strict=True):
            self._outputs.setdefault(name, _OutputSums(a.shape, str(a.dtype))).add(a, b)

    @property
    def finite(self) -> bool:
        """Whether all outputs of the original were finite so far."""
        return not any(sums.not_finite for sums in self._outputs.values())

    def outputs(self) -> tuple[OutputCheck, ...]:
        """The result for each output."""
        return tuple(sums.check(name) for name, sums in self._outputs.items())


@dataclass(slots=True)
class _OutputSums:
    """One output of both models: sums over the runs so far."""

    shape: tuple[int, ...]
    dtype: str
    matches: bool = True
    difference: float = 0.0
    size: float = 0.0
    largest: float = 0.0
    samples: int = 0
    same: int = 0
    not_finite: int = 0
    expected: Counter[int] = field(default_factory=Counter)
    actual: Counter[int] = field(default_factory=Counter)

    def add(self, a: Array, b: Array) -> None:
        """Add one run: ``a`` is the original's output, ``b`` the converted model's."""
        self.not_finite += a.dtype.kind == "f" and not bool(np.isfinite(a).all())
        self.matches = self.matches and a.shape == b.shape and a.dtype == b.dtype
        if not self.matches or a.dtype.kind not in "fiub":
            return
        difference, size, largest = _squares(a, b)
        self.difference += difference
        self.size += size
        self.largest = max(self.largest, largest) if largest == largest else largest
        if a.dtype.kind == "f" and _like_scores(a.shape):
            scores, others = a.reshape(len(a), -1), b.reshape(len(b), -1)
            comparable = np.isfinite(scores.max(1))  # NaN, and infinity, have no top class
            top, other = scores.argmax(1), others.argmax(1)
            self.samples += int(comparable.sum())
            self.same += int(((top == other) & np.isfinite(others.max(1)))[comparable].sum())
            self.expected.update(top[comparable].tolist())
            self.actual.update(other[comparable].tolist())

    def check(self, name: str) -> OutputCheck:
        known = self.matches and np.dtype(self.dtype).kind in "fiub"
        return OutputCheck(
            name=name,
            shape=self.shape,
            dtype=self.dtype,
            matches=self.matches,
            relative_error=_ratio(self.difference, self.size) if known else None,
            max_abs_error=self.largest if known and math.isfinite(self.largest) else None,
            agreement=self.same / self.samples if known and self.samples else None,
            not_finite=self.not_finite,
            chance=self._chance() if known and self.samples else None,
        )

    def _chance(self) -> float | None:
        """The agreement of two models that are independent and give each class as often."""
        if max(self.expected.values()) > ONE_CLASS * self.samples:
            return None
        both = sum(count * self.actual[label] for label, count in self.expected.items())
        return both / self.samples**2


def _squares(expected: Array, actual: Array) -> tuple[float, float, float]:
    """Squared norms of the difference and of ``expected``, and the largest difference."""
    with np.errstate(all="ignore"):  # NaN and infinite values end as NaN, which is not known
        a = expected.astype(np.float64).ravel()
        difference = actual.astype(np.float64).ravel() - a
        largest = float(np.abs(difference).max()) if difference.size else 0.0
        return float(difference @ difference), float(a @ a), largest


def _ratio(difference: float, size: float) -> float | None:
    """``|y - y'| / |y|``; None where it is not a number, so that no gate takes it for small."""
    if difference == 0:
        return 0.0
    value = math.sqrt(difference / size) if size > 0 else math.inf
    return value if math.isfinite(value) else None


def agreement(outputs: Sequence[OutputCheck]) -> float | None:
    """The smallest agreement; None where no output has class scores that can be compared.

    An output that looks like scores but was NaN in every run makes it None: nothing is known
    of that one.
    """
    if any(c.agreement is None and c.not_finite and _like_scores(c.shape) for c in outputs):
        return None
    return min((c.agreement for c in outputs if c.agreement is not None), default=None)


def worst(errors: Sequence[float | None]) -> float | None:
    """The largest error; None where one is not known."""
    known = [error for error in errors if error is not None]
    return max(known) if known and len(known) == len(errors) else None


def scores_of(outputs: Mapping[str, Array], samples: int) -> Array:
    """The first output that looks like class scores, as ``(samples, classes)``.

    Raises:
        UnsupportedError: no output does.
    """
    for array in outputs.values():
        if (
            array.ndim >= 2
            and array.shape[0] == samples
            and array.size == samples * max(array.shape[1:])
        ):
            return array.reshape(samples, -1)
    raise UnsupportedError(
        "no output of the model looks like class scores",
        hint="--eval FILE.py:FUNCTION measures whatever you like",
    )


def _like_scores(shape: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and shape[1] >= 2 and math.prod(shape[2:]) == 1
