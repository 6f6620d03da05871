"""The report: a row per layer, totals that are the sum of the rows, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dacconv.conversion.records import html_table, records
from dacconv.conversion.verdict import verdict_on
from dacconv.graph import roofline
from dacconv.graph.cost import Cost, total
from dacconv.graph.findings import (
    Calibration,
    Fused,
    LayerFit,
    PrecisionCheck,
    Search,
    Timings,
    Verification,
)
from dacconv.graph.plan_json import plan_to_dict, rank_to_json
from dacconv.graph.roofline import Roofline
from dacconv.graph.types import Geometry, Graph, Plan, Provenance, Rank, Refusal
from dacconv.graph.what_if import WhatIf

SCHEMA_VERSION = 1
CONVENTION = "1 MAC = one multiply-add; FLOPs = 2 x MACs; bias additions are not counted"


@dataclass(frozen=True, slots=True)
class Row:
    """One layer before and after. ``rank`` is None where the layer was left alone.

    ``merged_into`` is the layer that a fusion merged this one into. ``precision`` is that of the
    weights where it is known and not that of the computation, ``precision_reason`` why the layer
    did not get the one that was asked for.
    """

    name: str
    op: str
    geometry: Geometry | None
    sites: int
    eligible: bool
    reason: str | None
    method: str | None
    rank: Rank | None
    full_rank: Rank | None
    kernel_error: float | None
    energy_kept: float | None
    before: Cost
    after: Cost
    fit: LayerFit | None = None
    form: str | None = None
    roof_before: Roofline = roofline.NOTHING
    roof_after: Roofline = roofline.NOTHING
    merged_into: str | None = None
    precision: str | None = None
    precision_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Uncounted:
    """Operators that no row stands for: how many, and the parameters that they hold."""

    kind: str
    count: int
    params: int


@dataclass(frozen=True, slots=True)
class Merging:
    """What was merged before the split: the graph after it, and where each layer went.

    ``absorbed`` maps a layer that is gone to the one that it went into; ``params`` are the
    parameters, of BatchNorms and the like, that went into a layer.
    """

    graph: Graph
    absorbed: Mapping[str, str]
    params: Mapping[str, int]
    fused: tuple[Fused, ...]
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What was done to a model, what it saves, what it costs and what was left alone.

    ``verification`` is None where it was not done, and then ``unverified`` says why.
    ``missed`` are the gates that were missed, a sentence each. ``file_bytes`` are the sizes of
    the files of the original and of the converted model, where one was written. ``what_if`` are
    the costs with another width or resolution, where they were asked for.
    ``search`` is how the plan was found, where it was left to a search how much is saved.
    ``path`` is the original's, as it was opened, for the commands that are proposed.
    """

    format: str
    rows: tuple[Row, ...]
    uncounted: tuple[Uncounted, ...]
    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...]
    order: str
    fused: tuple[Fused, ...] = ()
    unmerged: tuple[Refusal, ...] = ()
    plan: Plan | None = None
    provenance: Provenance | None = None
    verification: Verification | None = None
    unverified: str | None = None
    calibration: Calibration | None = None
    timings: Timings | None = None
    missed: tuple[str, ...] = ()
    precision: PrecisionCheck | None = None
    file_bytes: tuple[int, int] | None = None
    what_if: WhatIf | None = None
    search: Search | None = None
    path: str | None = None

    @property
    def before(self) -> Cost:
        """The sum of the rows, before."""
        return total(row.before for row in self.rows)

    @property
    def after(self) -> Cost:
        """The sum of the rows, after."""
        return total(row.after for row in self.rows)

    @property
    def roof_before(self) -> Roofline:
        """Bytes, intensity and guidelines of all rows, before."""
        return roofline.total(row.roof_before for row in self.rows)

    @property
    def roof_after(self) -> Roofline:
        """Bytes, intensity and guidelines of all rows, after."""
        return roofline.total(row.roof_after for row in self.rows)

    @property
    def converted(self) -> tuple[Row, ...]:
        """The rows of the layers that were split."""
        return tuple(row for row in self.rows if row.rank is not None)

    def saving(self) -> float | None:
        """The share of MACs that is saved over the whole network; None where unknown."""
        before, after = self.before.macs, self.after.macs
        return None if before is None or after is None or not before else 1 - after / before

    def records(self) -> list[dict[str, Any]]:
        """One flat dict for each layer: ``pandas.DataFrame(report.records())``."""
        return records(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html_table(self)

    def _time(self) -> dict[str, Any]:
        """Milliseconds of the whole network as they were measured when it was verified."""
        time = self.verification.latency if self.verification else None
        return {"ms": {"before": time.original_ms, "after": time.converted_ms} if time else None}

    def _files(self) -> dict[str, Any]:
        """The bytes of the files, before and after."""
        sizes = self.file_bytes
        return {"file_bytes": {"before": sizes[0], "after": sizes[1]} if sizes else None}

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data; ``docs/report.md`` documents the schema."""
        return {
            "schema_version": SCHEMA_VERSION,
            "convention": CONVENTION,
            "format": self.format,
            "order": self.order,
            "layers": [_row_dict(row) for row in self.rows],
            "totals": _pair(self.before, self.after) | self._time() | _roofs(self) | self._files(),
            "uncounted": [asdict(entry) for entry in self.uncounted],
            "fused": [asdict(entry) for entry in self.fused],
            "refusals": _refusal_dicts(self.refusals),
            "unmerged": _refusal_dicts(self.unmerged),
            "notes": list(self.notes),
            "plan": plan_to_dict(self.plan) if self.plan else None,
            "verification": asdict(self.verification) if self.verification else None,
            "unverified": self.unverified,
            "verdict": asdict(verdict_on(self.verification, self.unverified)),
            "missed": list(self.missed),
            "search": asdict(self.search) if self.search else None,
            "calibration": asdict(self.calibration) if self.calibration else None,
            "precision": asdict(self.precision) if self.precision else None,
            "timings": _timings_dict(self.timings) if self.timings else None,
            "provenance": asdict(self.provenance) if self.provenance else None,
            "what_if": asdict(self.what_if) if self.what_if else None,
        }


def _pair(before: Cost, after: Cost) -> dict[str, Any]:
    return {
        "macs": {"before": before.macs, "after": after.macs},
        "params": {"before": before.params, "after": after.params},
        "bytes": {"before": before.traffic, "after": after.traffic},
    }


def _row_dict(row: Row) -> dict[str, Any]:
    return (
        {
            "name": row.name,
            "op": row.op,
            "eligible": row.eligible,
            "reason": row.reason,
            "merged_into": row.merged_into,
            "method": row.method,
            "rank": None if row.rank is None else rank_to_json(row.rank),
            "form": row.form,
            "precision": row.precision,
            "precision_reason": row.precision_reason,
            "full_rank": None if row.full_rank is None else rank_to_json(row.full_rank),
            **_geometry_dict(row.geometry),
            "sites": row.sites,
            "kernel_error": row.kernel_error,
            "energy_kept": row.energy_kept,
            "fit": asdict(row.fit) if row.fit else None,
        }
        | _pair(row.before, row.after)
        | _roofs(row)
    )


def _roofs(of: Row | Report) -> dict[str, Any]:
    before, after = _roof_dict(of.roof_before), _roof_dict(of.roof_after)
    return {key: {"before": before[key], "after": after[key]} for key in before}


def _roof_dict(roof: Roofline) -> dict[str, Any]:
    return {
        "intensity": roof.intensity,
        "elementwise_bytes": roof.elementwise,
        "operators": roof.operators,
        "guidelines": roof.guidelines,
    }


def _timings_dict(timings: Timings) -> dict[str, Any]:
    data = asdict(timings)
    for layer in data["layers"]:
        for split in layer["ranks"]:
            split["rank"] = rank_to_json(tuple(split["rank"]))
    return data


def _refusal_dicts(refusals: Sequence[Refusal]) -> list[dict[str, str]]:
    return [{"name": refusal.node, "reason": refusal.reason} for refusal in refusals]


def _geometry_dict(g: Geometry | None) -> dict[str, Any]:
    if g is None:
        names = ("kernel", "in_channels", "out_channels", "stride", "dilation", "groups")
        return dict.fromkeys((*names, "output_size"))
    return {
        "kernel": list(g.kernel),
        "in_channels": g.in_channels,
        "out_channels": g.out_channels,
        "stride": list(g.stride) if g.known else None,
        "dilation": list(g.dilation) if g.known else None,
        "groups": g.groups if g.known else None,
        "output_size": None if g.output_size is None else list(g.output_size),
    }
