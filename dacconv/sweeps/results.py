"""The results of a sweep: a row per point, and measures derived from the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dacconv.graph.findings import Latency
from dacconv.graph.plan_json import plan_to_dict
from dacconv.graph.types import Choice, Plan
from dacconv.planning.plans import plan_from_dict

ORIGINAL = "original"
"""The label of the row of the unconverted model."""
TITLES = {
    "agreement": "same top class",
    "output_error": "relative output error",
    "kernel_error": "relative kernel error",
    "top1": "top-1",
}
"""The names of measures in reports."""
SHARES = ("agreement", "top1")
"""The measures that are printed in percent."""


def without_notes(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Choices without their notes, which no result depends on."""
    return tuple(replace(choice, note="") for choice in choices)


@dataclass(frozen=True, slots=True)
class PointResult:
    """One point: its plan, its cost and its effect on the outputs.

    ``layer``, ``k``, ``rank`` and ``budget`` are those of ``points.Point``. ``kernel_error`` is
    ``|T - T_r| / |T|`` of the one layer that is split, the root mean square over several.
    ``output_error`` and ``agreement`` are those of ``findings.Verification``, and ``task`` has the
    numbers of the user's function by name. None means not known, or not measured. ``note`` is the
    reason why a point could not be run.
    """

    label: str
    mode: str
    choices: tuple[Choice, ...] = ()
    layer: str | None = None
    k: int | None = None
    rank: int | None = None
    budget: float | None = None
    macs: int | None = None
    params: int = 0
    kernel_error: float | None = None
    output_error: float | None = None
    agreement: float | None = None
    task: Mapping[str, float | None] = field(default_factory=dict)
    latency: Latency | None = None
    note: str = ""

    @property
    def plan(self) -> Plan:
        """The plan of this point."""
        return Plan(self.choices)


@dataclass(frozen=True, slots=True)
class Quality:
    """The measure by which points are judged: its name, and whether more of it is better."""

    name: str
    more: bool
    value: Callable[[PointResult], float | None]

    @property
    def title(self) -> str:
        """The name in reports."""
        return TITLES.get(self.name, self.name)

    def worth(self, row: PointResult) -> float | None:
        """The value, negated if less of it is better; None where it is not known."""
        value = self.value(row)
        return value if value is None or self.more else -value


@dataclass(frozen=True, slots=True)
class Sweep:
    """All points of a sweep. ``rows[0]`` is the original; the others are in order of the grid.

    ``header`` has the digest of the model, the options and a description of the inputs. ``layers``
    are those that may be split, in order of execution, and ``spectra`` has the share of each
    layer's squared singular values that every further rank adds.
    """

    header: Mapping[str, Any]
    layers: tuple[str, ...]
    spectra: Mapping[str, tuple[float, ...]]
    rows: tuple[PointResult, ...]

    @property
    def original(self) -> PointResult:
        """The row of the unconverted model."""
        return self.rows[0]

    @property
    def points(self) -> tuple[PointResult, ...]:
        """The rows without the original."""
        return self.rows[1:]

    def of_mode(self, mode: str) -> tuple[PointResult, ...]:
        """The points of one mode."""
        return tuple(row for row in self.points if row.mode == mode)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that the points split layers with, in order of their first use."""
        return tuple(dict.fromkeys(c.method for row in self.points for c in row.choices))

    def macs_share(self, row: PointResult) -> float | None:
        """The share of the original's MACs that is left; None where they are not known."""
        before = self.original.macs
        return None if row.macs is None or not before else row.macs / before

    def params_share(self, row: PointResult) -> float | None:
        """The share of the original's parameters that is left."""
        return row.params / self.original.params if self.original.params else None

    def measures(self) -> dict[str, Callable[[PointResult], float | None]]:
        """Every measure of a row by its name in ``--pick``."""
        measures: dict[str, Callable[[PointResult], float | None]] = {
            "macs": self.macs_share,
            "params": self.params_share,
            "kernel_error": lambda row: row.kernel_error,
            "output_error": lambda row: row.output_error,
            "agreement": lambda row: row.agreement,
            "speedup": lambda row: row.latency.speedup if row.latency else None,
            "ms": lambda row: row.latency.converted_ms if row.latency else None,
            "rank": lambda row: row.rank,
            "k": lambda row: row.k,
        }
        return {**measures, **{name: _task(name) for name in self.original.task}}

    @property
    def quality(self) -> Quality:
        """The measure that points are judged by: a task metric, else agreement, else errors.

        Of several task metrics it is the first; more of it is assumed to be better. Agreement is
        used only if it differs between points.
        """
        for name in self.original.task:
            return Quality(name, True, _task(name))
        same = {row.agreement for row in self.points}
        if None not in same and len(same) > 1:
            return Quality("agreement", True, lambda row: row.agreement)
        if any(row.output_error is not None for row in self.points):
            return Quality("output_error", False, lambda row: row.output_error)
        return Quality("kernel_error", False, lambda row: row.kernel_error)

    def to_dict(self) -> dict[str, Any]:
        """The sweep as JSON-ready data; :func:`sweep_from_dict` reads it back."""
        return {
            "header": dict(self.header),
            "layers": list(self.layers),
            "spectra": {name: list(values) for name, values in self.spectra.items()},
            "points": [row_to_dict(self, row) for row in self.rows],
        }


def row_to_dict(sweep: Sweep, row: PointResult) -> dict[str, Any]:
    """One row as JSON-ready data, with the shares of the original's costs."""
    time = row.latency
    return {
        "point": row.label,
        "mode": row.mode,
        "layer": row.layer,
        "k": row.k,
        "rank": row.rank,
        "budget": row.budget,
        "macs": row.macs,
        "macs_share": sweep.macs_share(row),
        "params": row.params,
        "params_share": sweep.params_share(row),
        "kernel_error": row.kernel_error,
        "output_error": row.output_error,
        "agreement": row.agreement,
        "original_ms": time.original_ms if time else None,
        "converted_ms": time.converted_ms if time else None,
        "speedup": time.speedup if time else None,
        "speedup_low": time.low if time else None,
        "speedup_high": time.high if time else None,
        "rounds": time.rounds if time else None,
        "batch": time.batch if time else None,
        **{f"task:{name}": value for name, value in row.task.items()},
        "note": row.note or None,
        "plan": plan_to_dict(row.plan)["layers"],
    }


def row_from_dict(data: Mapping[str, Any], where: str) -> PointResult:
    """The inverse of :func:`row_to_dict`.

    Raises:
        KeyError, TypeError, ValueError: ``data`` is not a row.
    """
    plan = plan_from_dict({"layers": data["plan"]}, where)
    time = None
    if data["speedup"] is not None:
        time = Latency(
            original_ms=data["original_ms"],
            converted_ms=data["converted_ms"],
            speedup=data["speedup"],
            low=data["speedup_low"],
            high=data["speedup_high"],
            rounds=data["rounds"],
            batch=data["batch"],
        )
    return PointResult(
        label=data["point"],
        mode=data["mode"],
        choices=plan.choices,
        layer=data["layer"],
        k=data["k"],
        rank=data["rank"],
        budget=data["budget"],
        macs=data["macs"],
        params=data["params"],
        kernel_error=data["kernel_error"],
        output_error=data["output_error"],
        agreement=data["agreement"],
        task={key.removeprefix("task:"): v for key, v in data.items() if key.startswith("task:")},
        latency=time,
        note=data["note"] or "",
    )


def sweep_from_dict(data: Mapping[str, Any], where: str) -> Sweep:
    """The inverse of :meth:`Sweep.to_dict`.

    Raises:
        KeyError, TypeError, ValueError: ``data`` is not a sweep.
    """
    return Sweep(
        header=dict(data["header"]),
        layers=tuple(data["layers"]),
        spectra={name: tuple(values) for name, values in data["spectra"].items()},
        rows=tuple(row_from_dict(row, where) for row in data["points"]),
    )


def _task(name: str) -> Callable[[PointResult], float | None]:
    return lambda row: row.task.get(name)
