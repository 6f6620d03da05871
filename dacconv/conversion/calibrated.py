"""How a conversion uses what was measured: damages for a budget, better factors, a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from dacconv.calibration.prepare import Calibrated
from dacconv.calibration.study import Rebuilt
from dacconv.conversion.splitting import Split
from dacconv.decompositions import METHODS, Factors
from dacconv.formats.base import Model
from dacconv.graph.findings import Calibration, LayerFit
from dacconv.graph.types import Layer, Plan
from dacconv.planning import ranks_worth
from dacconv.planning.spectra import Spectra


def measured_damage(
    calibrated: Calibrated, layers: Sequence[Layer], spectra: Spectra
) -> Callable[[Layer, int], float]:
    """The damage of a rank as measured; by kernel errors where a layer cannot be measured."""
    method = METHODS["dac"]
    ranks = {layer.name: ranks_worth(layer, method) for layer in layers}
    prices = calibrated.prices([layer for layer in layers if ranks[layer.name]], ranks)
    typical = median([price.sensitivity for price in prices.values()] or [1.0])

    def damage(layer: Layer, rank: int) -> float:
        price = prices.get(layer.name)
        if price is None or rank not in price.errors:
            return typical * spectra(layer.name).relative_error(rank) ** 2
        return price.damage(rank)

    return damage


def rebuilt_splits(
    calibrated: Calibrated, layers: Sequence[Layer], plan: Plan, plain: Mapping[str, Split]
) -> tuple[dict[str, Split], str]:
    """The splits with the factors that reproduce the layers' outputs, where there are any.

    And in words what was done.
    """
    ranks = {choice.layer: choice.rank for choice in plan.choices}
    found, told = calibrated.rebuilt(layers, ranks)
    sites = {layer.name: layer.sites[0] for layer in layers}
    made = {
        name: _with_factors(calibrated, sites[name], split, found[name]) if name in found else split
        for name, split in plain.items()
    }
    return made, told


def judge(calibrated: Calibrated, plain: Model, rebuilt: Model, told: str) -> Calibration:
    """Both conversions on the held-out inputs: the reconstructed one must do less harm."""
    before, second_before = calibrated.harm(plain)
    after, second_after = calibrated.harm(rebuilt)
    worse_there = (
        second_before is not None and second_after is not None and second_after > second_before
    )
    inputs = calibrated.inputs
    return Calibration(
        kind=inputs.kind,
        inputs=inputs.told,
        samples=inputs.count,
        notes=(*inputs.notes, told),
        plain_error=before,
        error=after,
        second_plain_error=second_before,
        second_error=second_after,
        taken=after < before and not worse_there,
    )


def _with_factors(calibrated: Calibrated, site: str, plain: Split, found: Rebuilt) -> Split:
    conv = calibrated.view.conv(site)
    fit = LayerFit(found.predicted, found.plain, found.held, found.what)
    if found.bias is None:  # the plain split stays, to the bit
        return replace(plain, error=replace(plain.error, fit=fit))
    channels, rank, _ = found.filters.shape
    ones = (1,) * len(conv.kernel)
    arrays = (
        found.filters.reshape(channels * rank, 1, *conv.kernel),
        found.pointwise.reshape(-1, channels * rank, *ones),
    )
    factors = Factors(arrays, plain.error.kernel_error)
    branches = METHODS["dac"].assemble(replace(conv, bias=found.bias), factors)
    error = replace(plain.error, fit=fit, bias_added=conv.bias is None)
    return Split(((site, branches),), error)
