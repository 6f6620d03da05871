"""The report of a plan: a row for every layer, with what it costs before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dacconv.conversion.report import Merging, Report, Row, Uncounted
from dacconv.decompositions import ALL, METHODS, survey
from dacconv.decompositions.costs import cost as split_cost
from dacconv.decompositions.costs import elementwise_bytes, split, whole
from dacconv.formats.base import Model
from dacconv.fusions.merged import MergedModel
from dacconv.graph.cost import NOTHING, Cost, shared_cost
from dacconv.graph.findings import Fused, LayerError, LayerPrecision, PrecisionCheck
from dacconv.graph.layers import uncounted
from dacconv.graph.types import Choice, Graph, Layer, Plan, Refusal
from dacconv.planning.base import first_method
from dacconv.planning.plans import NOT_SELECTED


def build_report(
    format: str,
    graph: Graph,
    *,
    plan: Plan | None = None,
    errors: Mapping[str, LayerError] | None = None,
    merging: Merging | None = None,
    lowered: PrecisionCheck | None = None,
) -> Report:
    """The report of a plan carried out on ``graph``, or of the model as it is.

    ``errors`` holds the kernel error of each layer that was split; ``merging`` what was
    merged before that, ``lowered`` how its precision was lowered.
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
    if lowered:
        precisions = {entry.layer: entry for entry in lowered.layers}
        rows = tuple(_in_precision(row, precisions.get(row.name)) for row in rows)
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
        precision=lowered,
    )


def merging_of(model: Model | MergedModel) -> Merging | None:
    """What was merged in a model before its layers are split; None where nothing was."""
    if not isinstance(model, MergedModel):
        return None
    return Merging(
        graph=model.graph(),
        absorbed=model.merged_into,
        params=model.merged_params,
        fused=tuple(Fused(name, edit.drop, edit.reason) for name, edit in model.edits.items()),
        refusals=model.refusals,
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
    method = METHODS[choice.method] if choice else None
    if method is None and layer.skip is None:  # a layer without sizes is never eligible
        method = first_method(layer, ALL)
    return Row(
        name=layer.name,
        op=layer.op,
        geometry=layer.geometries[0] if layer.geometries else None,
        sites=len(layer.sites),
        eligible=layer.skip is None,
        reason=layer.skip or (choice.note or None if choice else reason),
        method=choice.method if choice else None,
        rank=choice.rank if choice else None,
        full_rank=None if layer.skip or method is None else method.full_rank(layer.geometry),
        kernel_error=loss.kernel_error if loss else None,
        energy_kept=loss.energy_kept if loss else None,
        before=_cost(before) + Cost(0, merged_params, 0),
        after=cost,
        fit=loss.fit if loss else None,
        form=choice.form if choice and method and method.forms else None,
        roof_before=whole(before, _cost(before), around[0]),
        roof_after=roof,
        precision=before.precision or None,
    )


def _in_precision(row: Row, entry: LayerPrecision | None) -> Row:
    if entry is None:
        return row
    return replace(row, precision=entry.precision, precision_reason=entry.reason or None)


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
        merged_into=into,
    )


def _cost(layer: Layer) -> Cost:
    if not layer.geometries:
        return Cost(None, layer.params, None)
    return shared_cost(layer.geometries)


def _refusals(layers: Sequence[Layer], reasons: Mapping[str, str]) -> tuple[Refusal, ...]:
    return tuple(
        Refusal(layer.name, reason)
        for layer in layers
        if (reason := layer.skip or reasons.get(layer.name)) and reason != NOT_SELECTED
    )
