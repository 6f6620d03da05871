"""Which methods to choose from within a budget, found by trying.

What a split does to its own layer does not tell what all splits together do to the output: some
methods leave errors that add up, or fit the calibration inputs better than others. So plans that
choose among several sets of methods are carried out, without the last tuning, and the one whose
outputs stay nearest to the original's is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

from dacconv.calibration.descent import model_macs
from dacconv.calibration.prepare import Calibrated
from dacconv.conversion.calibrated import rebuilt_splits
from dacconv.conversion.splitting import rewrites, split_layer
from dacconv.decompositions import survey
from dacconv.errors import UsageError
from dacconv.formats.base import Model
from dacconv.formats.inputs import count_samples
from dacconv.graph.types import Plan
from dacconv.planning.spectra import Spectra
from dacconv.support.progress import Progress

MIXTURES = (
    "cp,lowrank",
    "cp,decoupling,lowrank",
    "dac,decoupling,lowrank",
    "dac,lowrank",
    "decoupling,lowrank",
    "spatial,spatial-horizontal,lowrank",
)
"""Sets of methods that are tried besides all methods together."""
MAX_MACS = 2 * 10**12
"""Multiply-adds that the trials of all plans may take: about a minute on two cores."""


def candidate_plans(
    make: Callable[[str | None], Plan], model: Model, calibrated: Calibrated
) -> list[Plan]:
    """The plan of all methods, and those of the mixtures that reach the budget, if affordable.

    ``make`` makes the plan that chooses among the methods that a text names.
    """
    plans = [make(None)]
    if not affordable(model, calibrated):
        return plans
    for names in MIXTURES:
        try:
            plan = make(names)
        except UsageError:  # the budget is out of reach
            continue
        if plan.choices not in [other.choices for other in plans]:
            plans.append(plan)
    return plans


def affordable(model: Model, calibrated: Calibrated) -> bool:
    """Whether the trials take less than ``MAX_MACS``."""
    inputs = calibrated.inputs
    samples = count_samples((*inputs.fitted, *inputs.held, *chain(*inputs.judges)))
    return 3 * samples * (1 + len(MIXTURES)) * model_macs(model) <= MAX_MACS


def least_harm(
    plans: Sequence[Plan], calibrated: Calibrated, kernel_scale: str, progress: Progress
) -> Plan:
    """The plan whose outputs are nearest to the original's.

    Errors on the held-out half and on the judging families are taken together.
    """
    if len(plans) == 1:
        return plans[0]
    view = calibrated.view
    graph = view.graph()
    layers = {layer.name: layer for layer in survey(graph)}
    spectra = Spectra(view, list(layers.values()), kernel_scale)
    constructs = calibrated.flat.constructs(2, own_layers=True)

    def harm(plan: Plan) -> float:
        splits = {c.layer: split_layer(spectra, layers[c.layer], c) for c in plan.choices}
        chosen = [layers[choice.layer] for choice in plan.choices]
        better, _ = rebuilt_splits(calibrated, chosen, splits, tune=False)
        converted = view.rewrite(rewrites(graph, list(better.values()), constructs))
        held, *others = calibrated.harm(converted)
        return held + (sum(others) / len(others) if others else 0.0)

    harms = []
    for count, plan in enumerate(plans):
        progress("trying sets of methods", count, len(plans))
        harms.append(harm(plan))
    progress("trying sets of methods", len(plans), len(plans))
    return plans[harms.index(min(harms))]
