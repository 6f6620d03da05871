"""The precision of a converted model: what its plan asks for, carried out on its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

from dacconv.calibration.prepare import Calibrated
from dacconv.conversion.int8 import quantised
from dacconv.conversion.range_inputs import NO_INT8, RangeInputs, of_calibration
from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.base import HalfStorable, Model
from dacconv.graph.findings import LayerPrecision, PrecisionCheck
from dacconv.graph.precision import AUTO, BF16, FP16, FP32, INT8, Precision
from dacconv.graph.types import LAYER_OPS, Graph, Layer, Plan
from dacconv.support.progress import Progress, silent

WORST, ROUNDS = 5, 20
"""How many times the limit the damage may be for ``auto``, and the alternating runs to time it."""


def in_precision(
    converted: Model,
    plan: Plan,
    original: tuple[Graph, Sequence[Layer]],
    inputs: RangeInputs | None,
    calibrated: Calibrated | None,
    progress: Progress = silent,
) -> tuple[Model, Plan, PrecisionCheck | None]:
    """A converted model in the precision of its plan, and the plan with nothing left open.

    ``original`` is the graph before the splits, with its layers.

    Raises:
        UnsupportedError: the format or the model does not allow the precision.
        UsageError: the plan names a layer that the model does not have, or there are no inputs.
    """
    precision = plan.precision
    wanted = {precision.default, *(v for _, v in precision.layers)} - {FP32} if precision else None
    if precision is None or not wanted:
        return converted, plan, None
    graph, layers = original
    if inputs is None and calibrated is not None:
        inputs = of_calibration(calibrated.inputs)
    if precision.default == AUTO:
        lowered = replace(plan, precision=replace(precision, default=INT8))
        try:
            result = in_precision(converted, lowered, original, inputs, None, progress)
        except UnsupportedError as error:
            return _in_fp32(converted, plan, layers, f"no int8: {error.what}")
        doubt = _not_worth_it(converted, result[0], result[2], inputs)
        return _in_fp32(converted, plan, layers, doubt) if doubt else result
    for each in sorted(wanted):
        if reason := converted.precision_refusal(each):
            raise UnsupportedError(reason, where=str(converted.path))
    names = [layer.name for layer in layers]
    require_known(precision, names, plan_name=str(converted.path))
    nodes = layer_nodes(graph, converted.graph(), layers)
    if INT8 not in wanted:
        model, settled, check = in_half(converted, precision, nodes)
        return model, replace(plan, precision=settled), check
    if inputs is None:
        raise UsageError(NO_INT8, hint="--calibrate synthetic draws them")
    model, settled, check = quantised(converted, precision, nodes, inputs, progress)
    if wanted - {INT8}:
        model, settled, half = in_half(model, precision, nodes, check)
        settled = replace(
            settled,
            activations=check.activations,
            ranges=check.ranges,
            reduce_range=check.reduce_range,
            correct_bias=check.correct_bias,
        )
        check = replace(check, layers=half.layers)
    return model, replace(plan, precision=settled), check


def _in_fp32(
    model: Model, plan: Plan, layers: Sequence[Layer], reason: str
) -> tuple[Model, Plan, PrecisionCheck]:
    """The model as it is, where no other precision is worth it."""
    entries = tuple(LayerPrecision(layer.name, FP32, reason) for layer in layers)
    precision = Precision(FP32).settled({layer.name: FP32 for layer in layers})
    check = PrecisionCheck(precision=INT8, inputs="", notes=(), layers=entries)
    return model, replace(plan, precision=precision), check


def _not_worth_it(
    model: Model, lowered: Model, check: PrecisionCheck | None, inputs: RangeInputs | None
) -> str:
    """The reason to keep fp32: int8 is not measured to be faster, or does damage; else empty."""
    from dacconv.conversion import verification

    if check is None or inputs is None:
        return "nothing was measured"
    if check.damage is None or check.limit is None or check.damage > WORST * check.limit:
        return f"int8 does the damage {check.damage:.3g}"
    time = verification.side_by_side(model.runner(), lowered.runner(), inputs.held[0], ROUNDS)
    low, _ = time.interval or (time.low, time.high)
    if low > 1:
        return ""
    return f"int8 is not measured to be faster: {time.speedup:.2f} x the speed of fp32"


def in_half(
    model: Model,
    precision: Precision,
    nodes: Mapping[str, Sequence[str]],
    before: PrecisionCheck | None = None,
) -> tuple[Model, Precision, PrecisionCheck]:
    """The model with weights stored in half precision where the precision says so.

    ``before`` is what was done to other layers. Returns the model, the precision with nothing
    open, and what was done.
    """
    if not isinstance(model, HalfStorable):
        raise UnsupportedError(f"this format stores no {precision.default}")
    ops = {node.name: node.op for node in model.graph().nodes}
    chosen = {
        node: precision.of(name)
        for name, members in nodes.items()
        if precision.of(name) in (FP16, BF16)
        for node in members
        if ops.get(node) in LAYER_OPS
    }
    result, reasons = model.stored_in_half(chosen)
    known = {entry.layer: entry for entry in before.layers} if before else {}
    entries = []
    for name, members in nodes.items():
        wanted = precision.of(name)
        if wanted not in (FP16, BF16):
            entries.append(known.get(name) or LayerPrecision(name, FP32))
            continue
        mine = [node for node in members if node in chosen]
        left = [reasons[node] for node in mine if node in reasons]
        entries.append(
            LayerPrecision(name, FP32, left[0] if left else "it has no constant weight")
            if len(left) == len(mine)
            else LayerPrecision(name, wanted, left[0] if left else "")
        )
    check = PrecisionCheck(
        precision=precision.default,
        inputs="",
        notes=("weights are stored in half precision and computed in fp32: smaller files, but "
               "neither less memory nor less time",),
        layers=tuple(entries),
    )  # fmt: skip
    return result, precision.settled({e.layer: e.precision for e in entries}), check


def require_known(precision: Precision, names: Sequence[str], *, plan_name: str) -> None:
    """Raise UsageError for an entry of a precision that matches no layer."""
    for pattern, _ in precision.layers:
        if not any(pattern == name or fnmatchcase(name, pattern) for name in names):
            near = ", ".join(get_close_matches(pattern, names, n=3, cutoff=0.4))
            raise UsageError(
                f"the precision names '{pattern}', which matches no layer",
                where=plan_name,
                hint=f"the nearest are {near}" if near else "`dacconv inspect` lists the layers",
            )


def layer_nodes(before: Graph, after: Graph, layers: Sequence[Layer]) -> dict[str, list[str]]:
    """The nodes that each layer of ``before`` has become in ``after``, where it was split.

    The result of a layer keeps its name when the layer is replaced, and so does what it reads.
    """
    producers = {node.output: node for node in after.nodes}
    sites = {node.name: node for node in before.nodes}
    nodes: dict[str, list[str]] = {}
    for layer in layers:
        names: dict[str, None] = {}
        for site in layer.sites:
            node = sites[site]
            pending, ends = [node.output], set(node.inputs)
            while pending:
                producer = producers.get(pending.pop())
                if producer is not None and producer.name not in names:
                    names[producer.name] = None
                    pending += [value for value in producer.inputs if value not in ends]
        nodes[layer.name] = list(names)
    return nodes
