"""How a conversion uses what was measured: damages for a budget, better factors, a verdict."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from dacconv.calibration.prepare import Calibrated
from dacconv.calibration.study import Rebuilt
from dacconv.conversion.splitting import Split
from dacconv.decompositions import Method
from dacconv.formats.base import Model
from dacconv.graph.findings import Calibration, LayerFit
from dacconv.graph.types import Choice, Layer
from dacconv.planning import Damage, splits_worth
from dacconv.planning.spectra import Spectra


def measured_damage(
    calibrated: Calibrated, layers: Sequence[Layer], methods: Sequence[Method], spectra: Spectra
) -> Damage:
    """The damage of a split as measured; by kernel errors where a layer cannot be measured."""
    choices = {
        layer.name: [c for method in methods for c in splits_worth(layer, method)]
        for layer in layers
    }
    prices = calibrated.prices([layer for layer in layers if choices[layer.name]], choices)
    typical = max(1.0, median([math.sqrt(p.sensitivity) for p in prices.values()] or [1.0]))

    def damage(layer: Layer, choice: Choice) -> float:
        price = prices.get(layer.name)
        if price is None or choice not in price.errors:
            return typical * spectra(layer.name, choice.method).relative_error(choice.rank) ** 2
        return price.damage(choice)

    return damage


def rebuilt_splits(
    calibrated: Calibrated,
    layers: Sequence[Layer],
    plain: Mapping[str, Split],
    *,
    tune: bool = True,
) -> tuple[dict[str, Split], str]:
    """The splits with factors that reproduce the layers' outputs, where there are any.

    And in words how they were obtained. ``tune``: they are tuned together where that helps.
    """
    starts = {name: (split.method.name, split.factors) for name, split in plain.items()}
    rebuilt, how = calibrated.rebuilt(layers, starts, tune=tune)
    return {
        name: _with_factors(split, rebuilt[name]) if name in rebuilt else split
        for name, split in plain.items()
    }, how


def judge(calibrated: Calibrated, plain: Model, rebuilt: Model, how: str) -> Calibration:
    """Both conversions on the held-out inputs: the reconstructed one must do less harm.

    And no more on any of the judging families; the one where it gains least is reported.
    """
    before, *befores = calibrated.harm(plain)
    after, *afters = calibrated.harm(rebuilt)
    inputs = calibrated.inputs
    least = max(zip(befores, afters, strict=True), key=_left, default=(None, None))
    return Calibration(
        kind=inputs.kind,
        inputs=inputs.description,
        samples=inputs.count,
        notes=(*inputs.notes, how),
        plain_error=before,
        error=after,
        second_plain_error=least[0],
        second_error=least[1],
        taken=after < before and all(map(operator.le, afters, befores)),
    )


def _left(errors: tuple[float, float]) -> float:
    """The share of the plain split's error that is left."""
    before, after = errors
    return after / before if before > 0 else float(after > 0)


def _with_factors(plain: Split, layer: Rebuilt) -> Split:
    fit = LayerFit(layer.predicted, layer.plain, layer.held, layer.what)
    if layer.bias is None:  # the plain split stays, to the bit
        return replace(plain, error=replace(plain.error, fit=fit))
    ((site, conv),) = plain.sites
    return replace(
        plain,
        sites=((site, replace(conv, bias=layer.bias)),),
        factors=layer.factors,
        error=replace(plain.error, fit=fit, bias_added=conv.bias is None),
    )
