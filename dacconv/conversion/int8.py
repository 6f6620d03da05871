"""Int8 of a converted model: ranges and layers chosen by the damage to the outputs.

What is decided here is plain control flow; ``formats`` carries it out. The reference is the
converted model in fp32, so that the damage is that of int8 alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dacconv.calibration.study import relative_error
from dacconv.conversion.range_inputs import RangeInputs
from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.base import Feeds, Int8Recipe, Model, Quantisable, Quantiser, Runner
from dacconv.formats.inputs import count_samples
from dacconv.graph.findings import LayerPrecision, PrecisionCheck
from dacconv.graph.precision import FP32, INT8, RANGES, Precision
from dacconv.graph.types import Array
from dacconv.support.machine import has_int8_dot_products, is_arm
from dacconv.support.progress import Progress, silent

LIMIT, LIMIT_OF_MAPS = 0.01, 0.002
"""The squared relative output error up to which no layer is put back to fp32: for outputs of class
scores, and for outputs with more axes (images, boxes), whose every value counts."""
DISAGREEMENT = 3
"""The ratio of the damages with and without the runtime's optimiser that is reported."""
PROBES = 32
"""The samples that single layers are judged on."""


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
    as_written = study.unoptimised_damage(result)
    layers = {
        name: FP32 if name in reasons or not study.in_int8(name, recipe) else INT8 for name in nodes
    }
    check = PrecisionCheck(
        precision=INT8,
        inputs=inputs.description,
        notes=(
            *inputs.notes,
            *study.quantiser.notes,
            *_disagreement(held, as_written, study.limit),
        ),
        activations=recipe.activations,
        ranges=recipe.ranges,
        reduce_range=recipe.reduce_range,
        correct_bias=recipe.correct_bias,
        damage=held,
        second_damage=second,
        unoptimised_damage=as_written,
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
        sensitive ones are put back, as few as are enough. One layer stays int8 at least.
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
        harms = {0: damage}

        def with_kept(count: int) -> Int8Recipe:
            kept = frozenset(node for name in order[:count] for node in self.nodes[name])
            return replace(recipe, kept=recipe.kept | kept)

        failed, count = 0, 1
        while min(harms.values()) > self.limit and count < len(order):
            harms[count] = self.damage(with_kept(count))
            if harms[count] > self.limit:
                failed, count = count, min(2 * count, max(len(order) - 1, count + 1))
        while harms.get(count, math.inf) <= self.limit and count - failed > 1:
            between = (failed + count) // 2
            harms[between] = self.damage(with_kept(between))
            if harms[between] > self.limit:
                failed = between
            else:
                count = between
        fits = [n for n, harm in harms.items() if harm <= self.limit]
        best = min(fits) if fits else min(harms, key=lambda n: harms[n])
        tried = [
            (f"{n} sensitive layer{'s' if n > 1 else ''} in fp32", harms[n])
            for n in sorted(harms)
            if n
        ]
        return with_kept(best), tried, {
            name: f"sensitive: int8 of this layer alone has the damage {alone[name]:.2g}"
            for name in order[:best]
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


def _disagreement(optimised: float, as_written: float, limit: float) -> tuple[str, ...]:
    """A note where the runtime's optimiser changes what the model computes."""
    if max(optimised, as_written) <= DISAGREEMENT * min(optimised, as_written) + limit:
        return ()
    return ("the runtime's optimiser changes the outputs: the damage differs with it and without",)


def _text(recipe: Int8Recipe) -> str:
    bias = ", biases corrected" if recipe.correct_bias else ""
    return f"{recipe.ranges}{bias}"
