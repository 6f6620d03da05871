"""The precision of a converted model: ranges and layers chosen by the damage to the outputs.

What is decided here is plain control flow; ``formats`` carries it out. The reference is the
converted model in fp32, so that the damage is that of the precision alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

from dacconv.calibration.inputs.families import Inputs
from dacconv.calibration.prepare import Calibrated, CalibrationOptions, choose_inputs
from dacconv.calibration.study import relative_error
from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.base import (
    Feeds,
    HalfStorable,
    Int8Recipe,
    Model,
    Quantisable,
    Quantiser,
    Runner,
)
from dacconv.formats.inputs import FAMILIES, count_samples, reason_not_runnable, seeded_inputs
from dacconv.graph.findings import LayerPrecision, PrecisionCheck
from dacconv.graph.precision import BF16, FP16, FP32, INT8, RANGES, Precision
from dacconv.graph.types import LAYER_OPS, Array, Graph, Layer, Plan
from dacconv.support.machine import has_int8_dot_products, is_arm
from dacconv.support.progress import Progress, silent

LIMIT, LIMIT_OF_MAPS = 0.01, 0.002
"""The squared relative output error up to which no layer is put back to fp32: for outputs of class
scores, and for outputs with more axes (images, boxes), whose every value counts."""
PROBES, NOISE = 32, 64
"""The samples that single layers are judged on, and those of noise for models without images."""
NO_INT8 = "int8 needs inputs, to measure the ranges of the activations on"


@dataclass(frozen=True, slots=True, eq=False)
class RangeInputs:
    """Inputs to measure ranges on, and held-out inputs of two families to judge them by."""

    fitted: Sequence[Feeds]
    held: Sequence[Feeds]
    second: Sequence[Feeds]
    description: str
    notes: tuple[str, ...] = ()


def range_inputs(
    model: Model, options: CalibrationOptions, progress: Progress = silent
) -> RangeInputs:
    """The inputs that ranges are measured on: those that calibration would use, else noise.

    Raises:
        UnsupportedError: the model cannot be run.
        UsageError: the user's inputs do not fit the model.
    """
    if reason := reason_not_runnable(model):
        raise UnsupportedError(f"{NO_INT8}, but {reason}", where=str(model.path))
    try:
        return of_calibration(choose_inputs(model, options, progress))
    except UnsupportedError as error:
        if options.source not in ("auto", "synthetic"):
            raise
        reason = error.what
    for family in FAMILIES:
        feeds = seeded_inputs(model.inputs(), NOISE, options.seed, family)
        if _finite(model.runner()(feeds[0]).values()):
            break
    return RangeInputs(
        fitted=feeds[::2],
        held=feeds[1::2],
        second=(),
        description=f"{count_samples(feeds)} inputs of noise ({family.name}), half held out",
        notes=(reason,),
    )


def of_calibration(inputs: Inputs) -> RangeInputs:
    """The inputs of a calibration as those of the ranges."""
    return RangeInputs(inputs.fitted, inputs.held, inputs.second, inputs.description, inputs.notes)


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
    if precision is None or (precision.default == FP32 and not precision.layers):
        return converted, replace(plan, precision=None), None
    graph, layers = original
    wanted = {precision.default, *(value for _, value in precision.layers)} - {FP32}
    for each in sorted(wanted):
        if reason := converted.precision_refusal(each):
            raise UnsupportedError(reason, where=str(converted.path))
    names = [layer.name for layer in layers]
    require_known(precision, names, plan_name=str(converted.path))
    nodes = layer_nodes(graph, converted.graph(), layers)
    if INT8 not in wanted:
        model, settled, check = in_half(converted, precision, nodes)
        return model, replace(plan, precision=settled), check
    if inputs is None and calibrated is not None:
        inputs = of_calibration(calibrated.inputs)
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


def quantised(
    model: Model,
    precision: Precision,
    nodes: Mapping[str, Sequence[str]],
    inputs: RangeInputs,
    progress: Progress = silent,
) -> tuple[Model, Precision, PrecisionCheck]:
    """The model in int8 where the precision says so and the damage is small.

    ``nodes`` are the nodes of each layer. Returns the model, the precision with nothing open,
    and what was measured.

    Raises:
        UnsupportedError: the model cannot be quantised; the message says why.
        UsageError: the precision names a layer that cannot be int8.
    """
    if not isinstance(model, Quantisable):
        raise UnsupportedError(model.precision_refusal(INT8) or "this format has no int8")
    progress("measuring ranges", 0, 1)
    study = _Study(model, model.quantiser(inputs.fitted), nodes, inputs, progress)
    reasons = study.reasons(precision)
    recipe = study.recipe(precision)
    tried: list[tuple[str, float]] = []
    if not precision.complete:
        recipe, tried = study.chosen(recipe, precision)
        recipe, more, sensitive = study.spared(recipe)
        tried += more
        reasons |= sensitive
    result = study.quantiser.quantised(recipe)
    held, second = study.damages(result)
    layers = {
        name: FP32 if name in reasons or not study.in_int8(name, recipe) else INT8 for name in nodes
    }
    check = PrecisionCheck(
        precision=INT8,
        inputs=inputs.description,
        notes=(*inputs.notes, *study.quantiser.notes),
        activations=recipe.activations,
        ranges=recipe.ranges,
        reduce_range=recipe.reduce_range,
        correct_bias=recipe.correct_bias,
        damage=held,
        second_damage=second,
        unoptimised_damage=study.unoptimised_damage(result),
        limit=study.limit,
        tried=tuple(tried),
        layers=tuple(LayerPrecision(n, p, reasons.get(n, "")) for n, p in layers.items()),
    )
    settled = replace(
        precision.settled(layers),
        activations=recipe.activations,
        ranges=recipe.ranges,
        reduce_range=recipe.reduce_range,
        correct_bias=recipe.correct_bias,
    )
    return result, settled, check


class _Study:
    """A model's quantiser, the reference outputs, and the damage of recipes."""

    def __init__(
        self,
        model: Model,
        quantiser: Quantiser,
        nodes: Mapping[str, Sequence[str]],
        inputs: RangeInputs,
        progress: Progress,
    ) -> None:
        self.quantiser, self.nodes, self.inputs = quantiser, nodes, inputs
        self.progress, self.count = progress, 0
        run = model.runner()
        self.held = [run(feeds) for feeds in inputs.held]
        self.second = [run(feeds) for feeds in inputs.second]
        axes = max((a.ndim for a in self.held[0].values() if a.dtype.kind == "f"), default=0)
        self.limit = LIMIT if axes <= 2 else LIMIT_OF_MAPS

    def recipe(self, precision: Precision) -> Int8Recipe:
        """The recipe of the settings that are fixed, with the layers that the user keeps."""
        kept = [n for name in self.nodes if precision.of(name) != INT8 for n in self.nodes[name]]
        partly = [
            n for name, nodes in self.nodes.items() for n in nodes if self._reason(name) is not None
        ]
        reduced = precision.reduce_range
        return Int8Recipe(
            kept=frozenset([*kept, *partly]),
            activations=precision.activations or ("int8" if is_arm() else "uint8"),
            ranges=precision.ranges or RANGES[0],
            reduce_range=not has_int8_dot_products() if reduced is None else reduced,
            correct_bias=bool(precision.correct_bias),
        )

    def reasons(self, precision: Precision) -> dict[str, str]:
        """The layers that stay in fp32 from the start, with the reason for each."""
        known = dict(precision.layers)
        reasons = {}
        for name in self.nodes:
            reason = self._reason(name)
            if reason is not None:
                if known.get(name) == INT8:
                    raise UsageError(f"layer {name} cannot be int8: {reason}")
                reasons[name] = reason
            elif precision.of(name) != INT8:
                reasons[name] = "" if precision.complete else "as it was asked for"
        return reasons

    def _reason(self, name: str) -> str | None:
        """The reason why a layer cannot be int8; None if all of its layer nodes can."""
        for node in self.nodes[name]:
            if node in self.quantiser.reasons:
                return self.quantiser.reasons[node]
        if not any(node in self.quantiser.layers for node in self.nodes[name]):
            return "it is not a conv or linear layer that ONNX Runtime has in int8"
        return None

    def in_int8(self, name: str, recipe: Int8Recipe) -> bool:
        """Whether a layer is quantised by a recipe."""
        return not recipe.kept.issuperset(self.nodes[name])

    def chosen(
        self, start: Int8Recipe, precision: Precision
    ) -> tuple[Int8Recipe, list[tuple[str, float]]]:
        """The recipe whose open settings do the least damage, and the damage of all tried."""
        ranges = (precision.ranges,) if precision.ranges else RANGES
        tried: list[tuple[Int8Recipe, float]] = []
        for method in ranges:
            recipe = replace(start, ranges=method)
            tried.append((recipe, self.damage(recipe)))
        best = min(tried, key=lambda each: each[1])
        if precision.correct_bias is None:
            recipe = replace(best[0], correct_bias=True)
            tried.append((recipe, self.damage(recipe)))
            best = min(tried, key=lambda each: each[1])
        return best[0], [(_text(recipe), damage) for recipe, damage in tried]

    def spared(
        self, recipe: Int8Recipe
    ) -> tuple[Int8Recipe, list[tuple[str, float]], dict[str, str]]:
        """The recipe with sensitive layers put back to fp32 until the damage is small.

        Every layer is quantised alone, which shows how sensitive the outputs are to it; the most
        sensitive ones are put back, twice as many each time. Ends at half of the layers.
        """
        damage = self.damage(recipe)
        layers = [name for name in self.nodes if self.in_int8(name, recipe)]
        if damage <= self.limit or len(layers) < 2:
            return recipe, [], {}
        everything = frozenset(node for name in layers for node in self.nodes[name])
        alone = {}
        for name in layers:
            others = everything - frozenset(self.nodes[name])
            alone[name] = self.damage(replace(recipe, kept=recipe.kept | others), probes=PROBES)
        order = sorted(layers, key=lambda name: -alone[name])
        best, least, tried = (recipe, 0), damage, []
        count = 1
        while count <= max(len(layers) // 2, 1) and least > self.limit:
            kept = frozenset(node for name in order[:count] for node in self.nodes[name])
            trial = replace(recipe, kept=recipe.kept | kept)
            harm = self.damage(trial)
            tried.append((f"{count} sensitive layer{'s' if count > 1 else ''} in fp32", harm))
            if harm < least:
                best, least = (trial, count), harm
            count *= 2
        spared = order[: best[1]]
        return best[0], tried, {
            name: f"sensitive: int8 of this layer alone has the damage {alone[name]:.2g}"
            for name in spared
        }  # fmt: skip

    def damage(self, recipe: Int8Recipe, probes: int | None = None) -> float:
        """The mean damage over the families of inputs; infinite where the runtime refuses."""
        self.count += 1
        self.progress("quantising", self.count, self.count + 1)
        try:
            held, second = self.damages(self.quantiser.quantised(recipe), probes)
        except UnsupportedError:
            return math.inf
        return held if second is None else (held + second) / 2

    def damages(self, model: Model, probes: int | None = None) -> tuple[float, float | None]:
        """The squared relative output error on the held-out inputs and on the second family."""
        run = model.runner()
        held = _error(run, self.inputs.held, self.held, probes)
        if not self.second:
            return held, None
        return held, _error(run, self.inputs.second, self.second, probes)

    def unoptimised_damage(self, model: Model) -> float:
        """The damage of a model when it is run as written, without the runtime's optimiser."""
        run = self.quantiser.runner_as_written(model)
        return _error(run, self.inputs.held, self.held, PROBES // 4)


def _error(
    run: Runner,
    batches: Sequence[Feeds],
    expected: Sequence[Mapping[str, Array]],
    probes: int | None,
) -> float:
    taken = 0
    while taken < len(batches) and (probes is None or count_samples(batches[:taken]) < probes):
        taken += 1
    actual = [dict(zip(e, run(f).values(), strict=True))
              for f, e in zip(batches[:taken], expected, strict=False)]  # fmt: skip
    return relative_error(expected[:taken], actual)


def _text(recipe: Int8Recipe) -> str:
    bias = ", biases corrected" if recipe.correct_bias else ""
    return f"{recipe.ranges}{bias}"


def _finite(arrays: Iterable[Array]) -> bool:
    import numpy as np

    return all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f")
