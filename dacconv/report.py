"""The report: a row per layer, totals that are the sum of the rows, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dacconv.decompositions import METHODS
from dacconv.emission import cost as split_cost
from dacconv.emission import elementwise_bytes, split, whole
from dacconv.layers import survey, uncounted
from dacconv.numerics import roofline
from dacconv.numerics.cost import NOTHING, Cost, shared_cost, total
from dacconv.numerics.roofline import Roofline
from dacconv.plans import NOT_SELECTED, plan_to_dict
from dacconv.types import Choice, Geometry, Graph, Layer, Plan, Provenance, Refusal

SCHEMA_VERSION = 1
CONVENTION = "1 MAC = one multiply-add; FLOPs = 2 x MACs; bias additions are not counted"


@dataclass(frozen=True, slots=True)
class LayerFit:
    """Mean squared error of a layer's output over its variance, behind the converted layers.

    ``predicted`` on the inputs that it was fitted to; ``plain`` and ``held`` on held-out ones,
    for the plain split and for what was taken, which ``what`` names.
    """

    predicted: float
    plain: float
    held: float
    what: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """How the layers' outputs were reproduced, and what that did to the model's outputs.

    Errors are squared and relative to the outputs' variance, on held-out inputs and on a
    second family of inputs (None where there is none), for the plain conversion and for the
    reconstructed one. The latter is ``taken`` where neither got worse.
    """

    kind: str
    inputs: str
    samples: int
    notes: tuple[str, ...]
    plain_error: float
    error: float
    second_plain_error: float | None
    second_error: float | None
    taken: bool


@dataclass(frozen=True, slots=True)
class LayerError:
    """What splitting one kernel lost: ``|T - T_r| / |T|``, Frobenius norm.

    ``fit`` says how far its output is reproduced, where that was tried. ``bias_added`` is true
    where the layer got a bias that it did not have.
    """

    kernel_error: float
    fit: LayerFit | None = None
    bias_added: bool = False

    @property
    def energy_kept(self) -> float:
        """The share of squared singular values that is kept."""
        return 1 - self.kernel_error**2


@dataclass(frozen=True, slots=True)
class Row:
    """One layer before and after. ``rank`` is None where the layer was left alone."""

    name: str
    op: str
    geometry: Geometry | None
    sites: int
    eligible: bool
    reason: str | None
    method: str | None
    rank: int | None
    full_rank: int | None
    kernel_error: float | None
    energy_kept: float | None
    before: Cost
    after: Cost
    fit: LayerFit | None = None
    form: str | None = None
    roof_before: Roofline = roofline.NOTHING
    roof_after: Roofline = roofline.NOTHING


@dataclass(frozen=True, slots=True)
class RankTime:
    """A layer at a rank in its fastest form: its time and its MACs over those of the conv."""

    rank: int
    form: str
    time: float
    macs: float


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Measured milliseconds of a layer as it is, and at the ranks that were measured.

    ``after_ms`` is what it takes as it was converted: as before where it was left alone.
    """

    layer: str
    before_ms: float
    after_ms: float
    ranks: tuple[RankTime, ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """Times of single layers, each in a network of its own, on that machine and runtime."""

    where: str
    layers: tuple[LayerTime, ...]

    @property
    def before_ms(self) -> float:
        """The sum over the measured layers, as they are."""
        return sum(layer.before_ms for layer in self.layers)

    @property
    def after_ms(self) -> float:
        """The sum over the measured layers, as converted."""
        return sum(layer.after_ms for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Uncounted:
    """Operators that no row stands for: how many, and the parameters that they hold."""

    kind: str
    count: int
    params: int


@dataclass(frozen=True, slots=True)
class Fused:
    """What became one conv without loss: the nodes that it stands for, and in short."""

    name: str
    absorbed: tuple[str, ...]
    what: str


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
class OutputCheck:
    """One output of both models on the same inputs; None where it cannot be computed."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    matches: bool
    relative_error: float | None
    max_abs_error: float | None
    agreement: float | None


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one run, both models alternating on the same input.

    The times are medians and ``speedup`` is their ratio, original over converted; ``low`` and
    ``high`` are the quartiles of the ratio in the single rounds.
    """

    original_ms: float
    converted_ms: float
    speedup: float
    low: float
    high: float
    rounds: int
    batch: int


@dataclass(frozen=True, slots=True)
class Verification:
    """Original and converted on the same seeded inputs, in the real runtime.

    ``relative_error`` is the largest over the outputs of ``|y - y'| / |y|``, Frobenius norm
    over all samples; None where it could not be computed. ``agreement`` is the share of
    samples with the same top class, None where no output looks like class scores.
    """

    relative_error: float | None
    agreement: float | None
    outputs: tuple[OutputCheck, ...]
    latency: Latency
    samples: int
    seed: int
    runtime: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What was done to a model, what it saves, what it costs and what was left alone.

    ``verification`` is None where it was not done, and then ``unverified`` says why.
    ``missed`` are the gates that were missed, a sentence each.
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

    def _time(self) -> dict[str, Any]:
        """Milliseconds of the whole network as they were measured when it was verified."""
        time = self.verification.latency if self.verification else None
        return {"ms": {"before": time.original_ms, "after": time.converted_ms} if time else None}

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data; ``docs/report.md`` documents the schema."""
        return {
            "schema_version": SCHEMA_VERSION,
            "convention": CONVENTION,
            "format": self.format,
            "order": self.order,
            "layers": [_row_dict(row) for row in self.rows],
            "totals": _pair(self.before, self.after) | self._time() | _roofs(self),
            "uncounted": [asdict(entry) for entry in self.uncounted],
            "fused": [asdict(entry) for entry in self.fused],
            "refusals": _refusal_dicts(self.refusals),
            "unmerged": _refusal_dicts(self.unmerged),
            "notes": list(self.notes),
            "plan": plan_to_dict(self.plan) if self.plan else None,
            "verification": asdict(self.verification) if self.verification else None,
            "unverified": self.unverified,
            "missed": list(self.missed),
            "calibration": asdict(self.calibration) if self.calibration else None,
            "timings": asdict(self.timings) if self.timings else None,
            "provenance": asdict(self.provenance) if self.provenance else None,
        }


def build(
    format: str,
    graph: Graph,
    *,
    plan: Plan | None = None,
    errors: Mapping[str, LayerError] | None = None,
    merging: Merging | None = None,
) -> Report:
    """The report of a plan carried out on ``graph``, or of the model as it is.

    ``errors`` holds the kernel error of each layer that was split; ``merging`` what was
    merged before that.
    """
    layers = survey(graph)
    choices = {choice.layer: choice for choice in plan.choices} if plan else {}
    reasons = {skip.layer: skip.reason for skip in plan.skipped} if plan else {}
    losses = errors or {}
    absorbed = merging.absorbed if merging else {}
    after = {layer.name: layer for layer in survey(merging.graph)} if merging else {}
    around = elementwise_bytes(graph)
    around_after = elementwise_bytes(merging.graph) if merging else around
    rows = tuple(
        _absorbed_row(layer, absorbed[layer.name], around[layer.name])
        if layer.name in absorbed
        else _row(
            layer,
            after.get(layer.name, layer),
            choices.get(layer.name),
            reasons.get(layer.name),
            losses.get(layer.name),
            merging.params.get(layer.name, 0) if merging else 0,
            (around[layer.name], around_after.get(layer.name, 0)),
        )
        for layer in layers
    )
    shown = [after.get(layer.name, layer) for layer in layers if layer.name not in absorbed]
    return Report(
        format=format,
        rows=rows,
        uncounted=tuple(
            Uncounted(*entry) for entry in uncounted(merging.graph if merging else graph)
        ),
        refusals=_refusals(shown, reasons),
        unmerged=merging.refusals if merging else (),
        notes=graph.notes,
        order=graph.order,
        fused=merging.fused if merging else (),
        plan=plan,
    )


def _row(
    before: Layer,
    layer: Layer,
    choice: Choice | None,
    reason: str | None,
    loss: LayerError | None,
    merged_params: int,
    around: tuple[int | None, int | None],
) -> Row:
    """``before`` is the layer in the original, ``layer`` what the fusions made of it.

    ``merged_params`` are those of the BatchNorms and the like that they put into it;
    ``around`` the bytes of element-wise operators before and after.
    """
    cost = _cost(layer)
    roof = whole(layer, cost, around[1])
    if choice:
        cost = split_cost(layer, choice, bias_added=loss is not None and loss.bias_added)
        roof = split(layer, choice, cost, around[1])
    method = METHODS[choice.method if choice else "dac"]
    return Row(
        name=layer.name,
        op=layer.op,
        geometry=layer.geometries[0] if layer.geometries else None,
        sites=len(layer.sites),
        eligible=layer.skip is None,
        reason=layer.skip or (choice.note or None if choice else reason),
        method=choice.method if choice else None,
        rank=choice.rank if choice else None,
        full_rank=None if layer.skip else method.full_rank(layer.geometry),
        kernel_error=loss.kernel_error if loss else None,
        energy_kept=loss.energy_kept if loss else None,
        before=_cost(before) + Cost(0, merged_params, 0),
        after=cost,
        fit=loss.fit if loss else None,
        form=choice.form if choice else None,
        roof_before=whole(before, _cost(before), around[0]),
        roof_after=roof,
    )


def _absorbed_row(layer: Layer, into: str, around: int | None) -> Row:
    return Row(
        name=layer.name,
        op=layer.op,
        geometry=layer.geometries[0] if layer.geometries else None,
        sites=len(layer.sites),
        eligible=False,
        reason=f"merged into {into}",
        method=None,
        rank=None,
        full_rank=None,
        kernel_error=None,
        energy_kept=None,
        before=_cost(layer),
        after=NOTHING,
        roof_before=whole(layer, _cost(layer), around),
    )


def _cost(layer: Layer) -> Cost:
    if not layer.geometries:
        return Cost(None, layer.params, None)
    return shared_cost(layer.geometries, layer.op)


def _refusals(layers: Sequence[Layer], reasons: Mapping[str, str]) -> tuple[Refusal, ...]:
    return tuple(
        Refusal(layer.name, reason)
        for layer in layers
        if (reason := layer.skip or reasons.get(layer.name)) and reason != NOT_SELECTED
    )


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
            "method": row.method,
            "rank": row.rank,
            "form": row.form,
            "full_rank": row.full_rank,
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
        "stride": list(g.stride),
        "dilation": list(g.dilation),
        "groups": g.groups,
        "output_size": None if g.output_size is None else list(g.output_size),
    }
