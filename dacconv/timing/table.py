"""The shipped table: what was fast on the machine that made it, for the nearest layer in it.

Made by ``scripts/form_table.py``; the file says on which machine and with which versions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar

from dacconv.graph.types import Choice, Geometry, Layer
from dacconv.timing.speeds import Target

_NEIGHBOURS = 6
"""So many rows are averaged: a single one is as noisy as any measurement."""
_WEIGHTS = {"in": 1, "out": 1, "size": 1, "kernel": 2, "stride": 2, "rank": 2, "blocks": 8}
"""How much a factor of two in each counts as distance, and channels in blocks or not."""
_BLOCK = 16
"""Runtimes have other kernels where the input channels are no multiple of this."""


@dataclass(frozen=True, slots=True)
class TableSpeeds:
    """Times over the conv's, from the nearest layers of the table."""

    target: Target
    measured: ClassVar[bool] = False

    def __call__(self, layer: Layer, choice: Choice, forms: Sequence[str]) -> Mapping[str, float]:
        """See :class:`~dacconv.timing.speeds.Speeds`; a GPU is not in the table."""
        if self.target.device != "cpu" or choice.method != "dac":
            return {}
        wanted = tuple(_features(layer.geometry, choice.rank[0]).items())
        times = _times(self.target.runtime, self.target.threads, wanted)
        return {form: times[form] for form in forms if form in times}


@cache
def table() -> Mapping[str, Any]:
    """The file, as it is."""
    text = files("dacconv.timing").joinpath("table.json").read_text(encoding="utf-8")
    data: Mapping[str, Any] = json.loads(text)
    return data


@cache
def _times(
    runtime: str, threads: int, features: tuple[tuple[str, float], ...]
) -> Mapping[str, float]:
    """The time of every form, by what the nearest rows say of it; networks repeat their layers."""
    wanted = dict(features)
    near = sorted(_rows(runtime, threads), key=lambda row: _distance(wanted, row["at"]))
    near = near[:_NEIGHBOURS]
    weights = [1 / (0.1 + _distance(wanted, row["at"])) for row in near]
    known = set[str].intersection(*(set(row["times"]) for row in near)) if near else set[str]()
    return {
        form: math.exp(
            sum(w * math.log(row["times"][form]) for w, row in zip(weights, near, strict=True))
            / sum(weights)
        )
        for form in known
    }


@cache
def _rows(runtime: str, threads: int) -> tuple[Mapping[str, Any], ...]:
    """The rows of a runtime at the nearest number of threads."""
    mine = [row for row in table()["rows"] if row["runtime"] == runtime]
    if not mine:
        return ()
    nearest = min({row["threads"] for row in mine}, key=lambda known: abs(known - threads))
    return tuple(
        {"at": _features(_geometry(row), row["rank"]), "times": row["times"]}
        for row in mine
        if row["threads"] == nearest
    )


def _geometry(row: Mapping[str, Any]) -> Geometry:
    size = tuple(row["output_size"])
    return Geometry(
        in_channels=row["in"],
        out_channels=row["out"],
        kernel=tuple(row["kernel"]),
        stride=tuple(row["stride"]),
        dilation=(1,) * len(size),
        groups=1,
        bias=False,
        input_size=None,
        output_size=size,
    )


def _features(geometry: Geometry, rank: int) -> dict[str, float]:
    size = geometry.output_size
    return {
        "in": math.log2(geometry.in_channels),
        "out": math.log2(geometry.out_channels),
        "size": _TYPICAL if size is None else math.log2(max(math.prod(size), 1)) / 2,
        "kernel": math.log2(math.prod(geometry.kernel)),
        "stride": math.log2(max(math.prod(geometry.stride), 1)),
        "rank": math.log2(rank),
        "blocks": float(geometry.in_channels % _BLOCK == 0),
    }


_TYPICAL = math.log2(28)
"""The side of an output whose size the model does not tell."""


def _distance(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    return math.sqrt(sum(w * (a[name] - b[name]) ** 2 for name, w in _WEIGHTS.items()))
